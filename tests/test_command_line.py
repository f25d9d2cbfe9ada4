"""The command line: what it prints, what it writes, and how it says that something is wrong."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from test_images import BROKEN, broken

import vlscore
import vlscore_cli
import vlscore_localize
from vlscore_lib.models import facts, lite0_minilm
from vlscore_lib.progress import show_progress

CAT, TRUCK = "an image of a cat.", "an image of a fire truck."  # in the photo, and not in it


@pytest.fixture
def offline(monkeypatch, lite0):
    """Take the loaded model, whichever is asked for."""
    monkeypatch.setattr(vlscore, "load_model", lambda *_: lite0)


@pytest.fixture
def localize(run, offline, chelsea):
    """Run ``localize`` on the photo of a cat, 16 maps scored -> stdout."""

    def localize(*arguments):
        code, out, err = run("localize", chelsea, *arguments, "--keep", 16)
        assert (code, err) == (0, "")
        return out

    return localize


@pytest.fixture
def fails(run, tmp_path):
    """Run ``localize`` with bad input -> the line on stderr; a picture in its way is left as it was."""

    def fails(*arguments, code=2):
        picture = tmp_path / "pictures" / "old.png"
        picture.parent.mkdir()
        picture.write_bytes(b"old")
        found = run("localize", *arguments, *([] if "--out" in arguments else ["--out", picture]))
        assert found[:2] == (code, "")
        assert os.listdir(picture.parent) == ["old.png"]
        assert picture.read_bytes() == b"old"
        return one_line(found[2])

    return fails


def one_line(err):
    assert err.startswith("vlscore: ")
    assert err.count("\n") == 1 and err.endswith("\n")
    assert "Traceback" not in err
    return err


# ── What it prints ───────────────────────────────────────────────────────────────────────────────


def test_json_is_one_object_with_the_documented_keys(localize, chelsea):
    found = json.loads(localize(CAT, TRUCK, "--json"))
    assert list(found) == ["image", "size", "model", "results"]
    assert (found["image"], found["size"], found["model"]) == (str(chelsea), [451, 300], "lite0-minilm")
    assert [each["text"] for each in found["results"]] == [CAT, TRUCK]
    for each in found["results"]:
        assert list(each) == ["text", "present", "boxes", "score", "base_score"]
        assert type(each["present"]) is bool
        assert type(each["score"]) is type(each["base_score"]) is float
        assert each["present"] == (each["score"] > each["base_score"]) == bool(each["boxes"])
    assert all(type(edge) is int for box in found["results"][0]["boxes"] for edge in box)
    assert [len(box) for box in found["results"][0]["boxes"]] == [4]
    assert found["results"][1]["boxes"] == []


def test_text_gives_a_line_a_prompt_and_a_line_a_box(localize, lite0, chelsea):
    first, box, second = localize(CAT, TRUCK).splitlines()
    found = vlscore.localize(lite0, chelsea, CAT, keep=16)
    x0, y0, x1, y1 = found.boxes[0]
    assert first == f"{CAT}  1 found; score {found.score:.3f}, empty image {found.base_score:.3f}"
    assert box == f"  box  x {x0} to {x1}  y {y0} to {y1}"
    assert second.startswith(f"{TRUCK}  absent; score ")


OPTIONS = {
    "--keep 0.3": {"keep": 0.3},
    "--refined --assume-present": {"refined": True, "assume_present": True},
    "--keep 8 --layer block12": {"keep": 8, "layer": "block12"},
    "--keep 8 --fit crop": {"keep": 8, "fit": "crop"},
    "--keep 8 --fit pad": {"keep": 8, "fit": "pad"},
    "--keep 8 --temperature 1": {"keep": 8, "temperature": 1.0},
    "--keep 8 --threshold 0.8": {"keep": 8, "threshold": 0.8},
}


@pytest.fixture(scope="module")
def plain(lite0, chelsea):
    return vlscore.localize(lite0, chelsea, CAT, keep=8)


@pytest.mark.parametrize("arguments", OPTIONS)
def test_an_option_is_that_of_localize(run, offline, lite0, chelsea, plain, arguments):
    code, out, _ = run("localize", chelsea, CAT, "--json", *arguments.split())
    (result,) = json.loads(out)["results"]
    found = vlscore.localize(lite0, chelsea, CAT, **OPTIONS[arguments])
    assert (code, result["score"], result["base_score"]) == (0, found.score, found.base_score)
    assert [tuple(box) for box in result["boxes"]] == found.boxes
    assert (found.score, found.boxes) != (plain.score, plain.boxes)


@pytest.mark.parametrize("kind", ["--maps attention", "--maps key --pca 2", "--maps value --layer 0"])
def test_maps_of_a_vit(run, monkeypatch, vit, chelsea, kind):
    monkeypatch.setattr(vlscore, "load_model", lambda *_: vit)
    code, _, err = run("localize", chelsea, "a cat", *kind.split())
    assert (code, err) == (0, "")


def test_a_checkpoint_is_named_by_its_path(run, checkpoints, chelsea):
    code, out, err = run("localize", chelsea, "a cat", "--model", checkpoints["vit"], "--keep", 4, "--json")
    assert (code, json.loads(out)["model"]) == (0, str(checkpoints["vit"]))
    assert f"write {checkpoints['vit']}:gelu" in one_line(err)


def test_models_lists_every_model_with_its_defaults(run):
    code, out, err = run("models")
    rows = [line.split() for line in out.splitlines()]
    found = {row[0]: tuple(map(float, row[2:5])) for row in rows[1:-3]}
    expected = {"lite0-minilm": facts.OFFLINE_DEFAULTS} | vlscore.SCENES_MODELS | vlscore.SCENES_MODELS
    for name in vlscore.CLIP_NAMES:
        is_vit = name.startswith("ViT")
        expected[name] = facts.CLIP_DEFAULTS["vit" if is_vit else "cnn"]
    assert (code, err, found) == (0, "", {name: defaults[:3] for name, defaults in expected.items()})
    assert rows[0][2:6] == ["τ", "α", "refined", "size"]
    assert all(row[6] == "MB" and len(row) > 7 for row in rows[1:-3])  # the size, and what the model is
    assert [row[0] for row in rows[-3:]] == ["open_clip", "hf", "PATH"]


@pytest.mark.parametrize("cached", [False, True])
def test_models_says_which_weights_are_here(run, monkeypatch, tmp_path, cached):
    monkeypatch.setenv("HOME", str(tmp_path))
    if cached:
        vlscore.clip_file("RN50").parent.mkdir(parents=True)
        vlscore.clip_file("RN50").touch()
    (row,) = [line.split() for line in run("models")[1].splitlines() if line.startswith("RN50 ")]
    assert row[1] == ("yes" if cached else "no")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(capsys, option):
    with pytest.raises(SystemExit) as end:
        vlscore_cli.main([option])
    assert end.value.code == 0
    assert "vlscore" in capsys.readouterr().out


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────────


def picture(path):
    with Image.open(path) as image:
        image.load()
        return image.convert("RGB")


def test_a_picture_has_a_row_a_prompt(localize, tmp_path):
    out = localize(CAT, TRUCK, "an image of a tabby.", "--out", tmp_path / "three.png")
    assert out.count("absent") == 1
    localize(CAT, "--out", tmp_path / "one.png")
    three, one = picture(tmp_path / "three.png"), picture(tmp_path / "one.png")
    assert three.width == one.width > 600
    assert three.height > 2.5 * one.height
    assert len(np.unique(np.asarray(one)[::3, ::3].reshape(-1, 3), axis=0)) > 1000  # a photo's colours
    assert sorted(os.listdir(tmp_path)) == ["one.png", "three.png"]


def test_a_picture_with_odd_characters_in_its_prompts(localize, tmp_path):
    prompts = ["a happy cat 😀", "a cat for $5", r"$\frac{$ cat", "a\ncat_^&#%"]
    localize(*prompts, "--out", tmp_path / "picture.png")
    assert picture(tmp_path / "picture.png").width > 600


def test_a_picture_in_another_format(localize, tmp_path):
    localize(CAT, "--out", tmp_path / "picture.JPG")
    assert picture(tmp_path / "picture.JPG").width > 600


@pytest.mark.parametrize("size", [(1, 1), (1, 3000)])
def test_a_picture_of_an_odd_image(run, offline, tmp_path, size):
    Image.new("RGB", size, "white").save(tmp_path / "odd.png")
    code, _, err = run("localize", tmp_path / "odd.png", CAT, "--keep", 4, "--out", tmp_path / "out.png")
    assert (code, err) == (0, "")
    assert picture(tmp_path / "out.png").width > 600


def test_a_picture_is_written_over_an_old_one(localize, tmp_path):
    (tmp_path / "picture.png").write_bytes(b"old")
    localize(CAT, "--out", tmp_path / "picture.png")
    assert picture(tmp_path / "picture.png").width > 600


@pytest.mark.parametrize(
    "out",
    ["missing/picture.png", "folder.png", "picture", "picture.doc", ".png", "", "a" * 300 + ".png", "p.pgf"],
)
def test_an_out_that_cannot_be(fails, offline, tmp_path, monkeypatch, chelsea, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert "--out" in fails(chelsea, CAT, "--keep", 4, "--out", out)
    assert sorted(os.listdir(tmp_path)) == ["folder.png", "pictures"]


def test_an_out_in_a_folder_that_takes_no_files(fails, offline, chelsea):
    assert "--out /proc/picture.png" in fails(chelsea, CAT, "--keep", 4, "--out", "/proc/picture.png")


def test_an_out_in_a_folder_without_permission(fails, monkeypatch, chelsea):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written" in fails(chelsea, CAT)


def test_a_full_disk(fails, offline, monkeypatch, chelsea):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in fails(chelsea, CAT, "--keep", 4)


# ── Bad input ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_read(fails, tmp_path, name):
    path = broken(name, tmp_path)
    assert str(path) in fails(path, CAT)


PROMPTS = {
    "": "empty",
    " \t\n": "empty",
    "a cat\0": "NUL",
    "cat " * 100: "at most 77",
    "\udcff": "prompt",  # how Python reads an argument that is not UTF-8
}


@pytest.mark.parametrize("prompt", PROMPTS, ids=repr)
def test_a_prompt_that_cannot_be_used(fails, offline, chelsea, prompt):
    assert PROMPTS[prompt] in fails(chelsea, CAT, prompt)


# Bad options, and what the message must name.
BAD_OPTIONS = {
    "--model nonsense": ["nonsense", "lite0-minilm"],
    "--layer nonsense": ["nonsense", "head"],
    "--maps nonsense": ["nonsense", "activation"],
    "--maps attention": ["attention", "CNN"],
    "--maps key --pca 2": ["key", "CNN"],
    "--fit nonsense": ["nonsense", "squash"],
    "--precision nonsense": ["nonsense", "float32"],
    "--pca 0": ["pca"],
    "--pca 2": ["pca", "activation"],
    "--pca two": ["--pca", "two"],
    **{f"--threshold {value}": ["threshold", value] for value in ("0", "1", "-1", "2", "nan", "abc")},
    **{f"--temperature {value}": ["temperature", value] for value in ("0", "-1", "nan", "inf", "abc")},
    **{f"--keep {value}": ["keep", value] for value in ("0", "-3", "nonsense", "1.5", "nan", "0.0", "inf")},
    "--nonsense": ["--nonsense"],
    "--keep": ["--keep"],
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_a_bad_option_is_named(fails, monkeypatch, lite0, chelsea, options):
    load = vlscore.load_model
    monkeypatch.setattr(vlscore, "load_model", lambda name: lite0 if name == "auto" else load(name))
    err = fails(chelsea, CAT, *options.split())
    assert all(each in err for each in BAD_OPTIONS[options])


def test_the_message_names_no_function_of_ours(fails, chelsea):
    assert "_keep" not in fails(chelsea, CAT, "--keep", "nonsense")


@pytest.mark.parametrize("n", [0, -1, 17, 10**6])
def test_a_number_of_components_out_of_range(fails, monkeypatch, vit, chelsea, n):
    monkeypatch.setattr(vlscore, "load_model", lambda *_: vit)
    assert f"pca={n} is out of range: choose 1 to 16" in fails(chelsea, CAT, "--maps", "key", "--pca", n)


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["localize"], ["localize", "cat.png"], ["--nonsense"]]
)
def test_missing_and_unknown_arguments(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "--help" in one_line(err)


def test_a_bad_option_is_told_before_a_model_is_loaded(fails, monkeypatch, chelsea):
    monkeypatch.setattr(vlscore, "load_model", lambda *_: pytest.fail("loaded"))
    assert "threshold" in fails(chelsea, CAT, "--threshold", 2)


def test_a_bad_prompt_is_told_before_the_long_part(fails, offline, monkeypatch, chelsea):
    monkeypatch.setattr(vlscore, "encode", lambda *_, **__: pytest.fail("encoded"))
    assert "empty" in fails(chelsea, CAT, "")


# ── Models ───────────────────────────────────────────────────────────────────────────────────────


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_malicious_pickle_is_refused_and_not_run(fails, tmp_path, chelsea, dump):
    with (tmp_path / "model.pt").open("wb") as file:
        dump({"visual.proj": Malicious(tmp_path / "ran")}, file)
    assert str(tmp_path / "model.pt") in fails(chelsea, CAT, "--model", tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


class WritesAFile(torch.nn.Module):
    """TorchScript runs ``__setstate__`` when it is loaded, and its operators can write files."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path
        self.kept = torch.zeros(1)

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]):
        self.path = state[0]
        self.training = state[1]
        self.kept = torch.from_file(state[0], True, 16, dtype=torch.uint8).fill_(65)


def test_a_malicious_torchscript_archive_is_refused_and_not_run(fails, tmp_path, chelsea):
    torch.jit.script(WritesAFile(str(tmp_path / "ran"))).save(tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in fails(chelsea, CAT, "--model", tmp_path / "model.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04"])
def test_a_file_that_is_no_checkpoint(fails, tmp_path, chelsea, content):
    (tmp_path / "model.pt").write_bytes(content)
    assert str(tmp_path / "model.pt") in fails(chelsea, CAT, "--model", tmp_path / "model.pt")


@pytest.mark.parametrize("model", [".", "", "missing.pt", "a" * 300])
def test_a_model_that_is_no_file(fails, chelsea, model):
    assert "lite0-minilm" in fails(chelsea, CAT, "--model", model)


def test_clip_without_a_network(fails, monkeypatch, tmp_path, chelsea):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    err = fails(chelsea, CAT, "--model", "RN50")
    assert "no route to host" in err
    assert str(tmp_path / "home" / ".cache" / "clip") in err
    assert "lite0-minilm" in err


def test_auto_says_which_model_it_took_and_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(lite0_minilm, "Lite0MiniLM", lambda name, device: name)
    assert vlscore.load_model("auto") == "lite0-minilm"
    out, err = capsys.readouterr()
    assert out == ""
    assert "lite0-minilm (no weights of CLIP RN50" in one_line(err)


# ── When it is stopped, or fails ─────────────────────────────────────────────────────────────────


def test_an_interrupt_is_130(fails, offline, monkeypatch, chelsea):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(vlscore, "encode", interrupt)
    assert fails(chelsea, CAT, code=130) == "vlscore: stopped\n"


def test_an_error_of_ours_is_1(fails, offline, monkeypatch, chelsea):
    def fail(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(vlscore, "encode", fail)
    assert "RuntimeError: first line second line" in fails(chelsea, CAT, code=1)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown_on_a_terminal_only(monkeypatch, terminal):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    bar = show_progress(range(5))
    bar.start_t = bar.last_print_t = 0  # more than two seconds ago
    assert list(bar) == list(range(5))
    assert ("encoding masked images" in sys.stderr.getvalue()) == terminal


# ── As a program ─────────────────────────────────────────────────────────────────────────────────


def program(*arguments, home, **options):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "vlscore_cli", *map(str, arguments)]
    return subprocess.run(command, env=environment | {"HOME": str(home)}, text=True, **options)


def test_the_program_with_its_default_model(chelsea, tmp_path):
    arguments = "localize", chelsea, CAT, "--json", "--keep", 16
    found = program(*arguments, home=tmp_path, capture_output=True)
    assert found.returncode == 0
    (line,) = found.stdout.splitlines()
    facts = json.loads(line)
    assert (facts["image"], facts["size"], facts["model"]) == (str(chelsea), [451, 300], "lite0-minilm")
    assert facts["results"][0]["present"] is True
    assert "model lite0-minilm" in one_line(found.stderr)


def test_the_program_when_its_reader_has_gone(tmp_path):
    """As in ``vlscore models | head -0``."""
    reader, writer = os.pipe()
    os.close(reader)
    found = program("models", home=tmp_path, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (found.returncode, found.stderr) == (0, "")


# ── Several images ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def three(chelsea, tmp_path, monkeypatch):
    """A folder to stand in: three photos, one broken."""
    photo = Image.open(chelsea)
    for name in ("a b.jpg", "c.png", "[x].jpg"):
        photo.resize((90, 60)).save(tmp_path / name)
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments, images, texts",
    [
        (["a b.jpg", "cat"], ["a b.jpg"], ["cat"]),
        (
            ["a b.jpg", "c.png", "an image of a cat.", "c.png"],
            ["a b.jpg", "c.png"],
            ["an image of a cat.", "c.png"],
        ),
        (["*.png", "a b.jpg", "cat"], ["c.png", "a b.jpg"], ["cat"]),
        (["[x].jpg", "cat?"], ["[x].jpg"], ["cat?"]),
        (["[x].jpg", "*.jpg", "cat"], ["[x].jpg", "a b.jpg", "broken.jpg"], ["cat"]),
        (["c.png", "missing.jpg", "cat"], ["c.png", "missing.jpg"], ["cat"]),
        (["c.png", "what a photo.jpg"], ["c.png"], ["what a photo.jpg"]),
        (["**/c.*", "cat" * 200], ["c.png"], ["cat" * 200]),
    ],
)
def test_images_are_told_from_texts(three, arguments, images, texts):
    assert vlscore_localize.split_images(arguments[0], arguments[1:]) == (images, texts)


def test_several_images_give_an_object_a_line(run, three, offline):
    code, out, err = run("localize", "a b.jpg", "c.png", CAT, TRUCK, "--keep", 4, "--json")
    assert (code, err) == (0, "")
    found = [json.loads(line) for line in out.splitlines()]
    assert [(each["image"], len(each["results"])) for each in found] == [("a b.jpg", 2), ("c.png", 2)]
    one = run("localize", "c.png", CAT, TRUCK, "--keep", 4, "--json")[1]
    assert json.loads(one) == found[1]


def test_a_broken_image_does_not_stop_the_others(run, three, offline):
    code, out, err = run("localize", "broken.jpg", "c.png", "gone.jpg", CAT, "--keep", 4)
    assert code == 2
    assert out.splitlines()[0] == "c.png"
    first, second, last = err.splitlines()
    assert "broken.jpg" in first and "gone.jpg does not exist" in second
    assert "2 of 3 images could not be used" in last


def test_pictures_of_several_images_lie_in_a_folder(run, three, offline, tmp_path):
    code, _, err = run("localize", "a b.jpg", "c.png", CAT, "--keep", 4, "--out", "found")
    assert (code, err) == (0, "")
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"a b.png", "c.png"}
    assert "give a folder" in run("localize", "a b.jpg", "c.png", CAT, "--out", "found.png")[2]


def test_images_without_a_text(run, three):
    code, out, err = run("localize", "a b.jpg", "c.png")
    assert (code, out) == (2, "")
    assert "c.png is an image, and no text follows" in one_line(err)
