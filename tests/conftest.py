"""What the test files share: the offline model, two tiny CLIPs with random weights, and a photo."""

import math
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import vlscore
import vlscore_cli
from vlscore_lib import scenes

TEXT = (77, 49408, 64, 1, 1)  # context, vocabulary, width, heads, layers


def randomise(module):
    """Random norms and biases, and convolutions that keep the signal's size.

    A fresh network's norms and biases are 0 and 1, and would hide many a mistake; and its embeddings
    hardly depend on the image.
    """
    for each in module.modules():
        if isinstance(each, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(each.weight)
        if isinstance(each, torch.nn.BatchNorm2d):
            each.running_mean.normal_(0, 0.2)
            each.running_var.uniform_(0.5, 1.5)
        if isinstance(each, torch.nn.BatchNorm2d | torch.nn.LayerNorm):
            each.weight.data.uniform_(0.5, 1.5)
            each.bias.data.normal_(0, 0.2)
        if isinstance(each, torch.nn.MultiheadAttention):
            each.in_proj_bias.data.normal_(0, 0.5)
            each.out_proj.bias.data.normal_(0, 0.2)
    return module


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """The tests neither read nor fill the user's cache."""
    os.environ["VLSCORE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def same_environment():
    """Put back the environment, which a Dask cluster changes, and the threads, of which a study takes one."""
    before, threads = dict(os.environ), torch.get_num_threads()
    yield
    os.environ.clear()
    os.environ.update(before)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Paths of tiny CLIPs: ``rn`` has 256 maps of 3×3 from 96 pixels, ``vit`` 4×4 patches of 64."""
    CLIP = vlscore.import_clip().model.CLIP
    folder, paths = tmp_path_factory.mktemp("checkpoints"), {}
    sizes = {"rn": (96, (1, 1, 1, 1), 8, None), "vit": (64, 2, 128, 16)}
    for name, size in sizes.items():
        torch.manual_seed(0)
        paths[name] = folder / f"{name}.pt"
        clip = randomise(CLIP(64, *size, *TEXT))
        clip.logit_scale.data.fill_(math.log(100))  # as in OpenAI's weights
        torch.save(clip.state_dict(), paths[name])
    return paths


@pytest.fixture(scope="session")
def rn(checkpoints):
    return vlscore.load_model(str(checkpoints["rn"]))


@pytest.fixture(scope="session")
def vit(checkpoints):
    return vlscore.load_model(str(checkpoints["vit"]))


@pytest.fixture(scope="session")
def lite0():
    return vlscore.load_model("lite0-minilm")


@pytest.fixture(scope="session")
def scenes_rn():
    return vlscore.load_model("scenes-rn", "cpu")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """The folder of 24 drawn scenes: three shards of an evaluation."""
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    scenes.write_scenes(folder, 24, 6, (224, 224))
    return folder


@pytest.fixture(scope="session")
def chelsea():
    """The path of a photo of a cat, 451×300."""
    return Path(find_spec("skimage").origin).parent / "data" / "chelsea.png"


@pytest.fixture
def run(capsys):
    """Run the command line here -> (exit code, stdout, stderr)."""

    def run(*arguments):
        code = vlscore_cli.main([str(each) for each in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module", params=["rn", "vit"])
def full(request, chelsea):
    """A model, and its encoding with all maps."""
    model = request.getfixturevalue(request.param)
    return model, vlscore.encode(model, chelsea, precision="float32")


@pytest.fixture
def synthetic():
    """Four maps; for the text (1, 0) they score 0.8, 0.6, 0 and -0.6 and the empty image 0.28."""
    return vlscore.Encoding(
        model="none",
        layer="none",
        kind="activation",
        input_size=8,
        fit=vlscore.Fit((8, 8), (0.0, 0.0, 8.0, 8.0)),
        maps=torch.tensor([[[1.0, -5.0]], [[3.0, 2.0]], [[100.0, 100.0]], [[-100.0, 100.0]]]),
        indices=torch.arange(4),
        mask_embeddings=torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-0.6, 0.8]]),
        base_embedding=torch.tensor([0.28, 0.96]),
        image_embedding=torch.tensor([1.0, 0.0]),
        temperature=1.0,
        threshold=0.5,
    )
