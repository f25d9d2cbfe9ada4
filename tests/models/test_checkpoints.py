"""Checkpoints are loaded without running what is in them."""

import math
import os
import pickle
import zipfile

import pytest
import torch
from models_helpers import photo

import vlscore
from vlscore_lib.models import facts


def assert_weights(model, path):
    saved, loaded = torch.load(path, weights_only=True), model.clip.state_dict()
    assert saved.keys() == loaded.keys()
    for name, weight in saved.items():
        assert loaded[name].dtype == weight.dtype, name
        assert torch.equal(loaded[name], weight), name


def test_weights_of_a_state_dict_are_not_rounded(clip_model, checkpoints):
    """`clip.model.build_model` passes them through fp16."""
    path = checkpoints["vit" if clip_model.is_vit else "rn"]
    weight = torch.load(path, weights_only=True)["visual.conv1.weight"]
    assert not torch.equal(weight, weight.half().float())  # rounding would show
    assert_weights(clip_model, path)


def test_weights_of_an_archive_are_those_of_the_state_dict(archive, checkpoints):
    assert "input_resolution" in torch.jit.load(archive).state_dict()
    assert_weights(vlscore.load_model(str(archive)), checkpoints["vit"])


def test_fp16_weights_are_computed_with_in_float32(checkpoints, tmp_path):
    halves = {name: w.half() for name, w in torch.load(checkpoints["vit"], weights_only=True).items()}
    torch.save(halves, tmp_path / "half.pt")
    model = vlscore.load_model(str(tmp_path / "half.pt"))
    loaded = model.clip.state_dict()
    assert all(torch.equal(loaded[name], weight.float()) for name, weight in halves.items())
    assert all(weight.dtype == torch.float32 for weight in loaded.values())


def test_the_temperature_is_one_over_the_scale_in_the_file(checkpoints, tmp_path):
    weights = torch.load(checkpoints["vit"])
    weights["logit_scale"].fill_(math.log(50))
    torch.save(weights, tmp_path / "vit.pt")
    assert vlscore.load_model(str(checkpoints["vit"])).temperature == pytest.approx(0.01)
    assert vlscore.load_model(str(tmp_path / "vit.pt")).temperature == pytest.approx(0.02)


def test_a_loaded_model_tells_what_it_is(rn, vit, checkpoints):
    assert (rn.name, rn.input_size, rn.is_vit) == (str(checkpoints["rn"]), 96, False)
    assert (vit.name, vit.input_size, vit.is_vit) == (str(checkpoints["vit"]), 64, True)
    for model, family in ((rn, "cnn"), (vit, "vit")):
        tuned = model.temperature, model.threshold, model.refined_threshold, model.prominence
        assert tuned == facts.CLIP_DEFAULTS[family]
    assert not any(weight.requires_grad for weight in rn.clip.parameters())
    assert not rn.clip.training


class Evil:
    """Unpickling this makes a folder."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def bare_pickle(evil, path, archive):
    path.write_bytes(pickle.dumps({"visual.proj": evil}))


def torch_zip(evil, path, archive):
    torch.save({"visual.proj": evil}, path)


def torch_legacy(evil, path, archive):
    torch.save({"visual.proj": evil}, path, _use_new_zipfile_serialization=False)


def zip_with_constants(evil, path, archive):
    """A checkpoint that pretends to be TorchScript by an extra member."""
    torch.save({"visual.proj": evil}, path)
    with zipfile.ZipFile(path, "a") as file:
        root = file.namelist()[0].split("/")[0]
        file.writestr(f"{root}/constants.pkl", pickle.dumps(evil, protocol=2))


def archive_with(member):
    """A true TorchScript archive, one member of it replaced."""

    def write(evil, path, archive):
        with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                bad = name.endswith(f"/{member}")
                new.writestr(name, pickle.dumps(evil, protocol=2) if bad else old.read(name))

    write.__name__ = member
    return write


@pytest.mark.parametrize("kind", [bare_pickle, torch_zip, torch_legacy])
def test_the_malicious_checkpoints_do_work(kind, tmp_path):
    """Without the guard they run their code; else the next test would show nothing."""
    kind(Evil(tmp_path / "made"), tmp_path / "evil.pt", None)
    if kind is bare_pickle:
        pickle.loads((tmp_path / "evil.pt").read_bytes())
    else:
        torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "made").exists()


EVIL = [bare_pickle, torch_zip, torch_legacy, zip_with_constants, archive_with("data.pkl")]


@pytest.mark.parametrize("kind", EVIL, ids=lambda kind: kind.__name__)
def test_a_malicious_checkpoint_is_refused_and_does_not_run(kind, tmp_path, archive):
    kind(Evil(tmp_path / "made"), tmp_path / "evil.pt", archive)
    with pytest.raises(vlscore.VLScoreError, match="loaded safely"):
        vlscore.load_model(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "made").exists()


def test_code_beside_the_weights_is_not_run(tmp_path, archive):
    """Of a TorchScript archive only the tensors are read, so what else is in it does not matter."""
    archive_with("constants.pkl")(Evil(tmp_path / "made"), tmp_path / "evil.pt", archive)
    vlscore.load_model(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "made").exists()


def text_file(path, checkpoints, archive):
    path.write_text("visual.proj: 1\n" * 50)


def empty_file(path, checkpoints, archive):
    path.touch()


def truncated_state_dict(path, checkpoints, archive):
    content = checkpoints["rn"].read_bytes()
    path.write_bytes(content[: len(content) // 2])


def truncated_archive(path, checkpoints, archive):
    content = archive.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def a_zip(path, checkpoints, archive):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/constants.pkl", "no pickle")


def another_state_dict(path, checkpoints, archive):
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)


def another_archive(path, checkpoints, archive):
    torch.jit.script(torch.nn.Linear(3, 2)).save(str(path))


def a_list(path, checkpoints, archive):
    torch.save([torch.zeros(2)], path)


def a_tensor(path, checkpoints, archive):
    torch.save(torch.zeros(2), path)


def a_missing_weight(path, checkpoints, archive):
    state = torch.load(checkpoints["vit"], weights_only=True)
    del state["visual.class_embedding"]
    torch.save(state, path)


def a_weight_of_another_shape(path, checkpoints, archive):
    state = torch.load(checkpoints["vit"], weights_only=True)
    state["visual.class_embedding"] = torch.zeros(7)
    torch.save(state, path)


JUNK = [text_file, empty_file, truncated_state_dict, truncated_archive, photo, a_zip, another_state_dict]


JUNK += [another_archive, a_list, a_tensor, a_missing_weight, a_weight_of_another_shape]


@pytest.mark.parametrize("kind", JUNK, ids=lambda kind: kind.__name__)
def test_a_file_that_is_no_checkpoint_is_told_in_one_line(kind, tmp_path, checkpoints, archive):
    path = tmp_path / "junk.pt"
    kind(path, checkpoints, archive)
    with pytest.raises(vlscore.VLScoreError) as error:
        vlscore.load_model(str(path))
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300
