"""Fixtures of the tests of models."""

import warnings

import pytest
import torch

import vlscore


@pytest.fixture(params=["rn", "vit", "lite0"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["rn", "vit"])
def clip_model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def archive(checkpoints, tmp_path_factory):
    """A TorchScript archive like OpenAI's, with three numbers beside the weights."""
    clip = vlscore.import_clip()
    net = clip.model.CLIP(64, 64, 2, 128, 16, 77, 49408, 64, 1, 1).eval()
    net.load_state_dict(torch.load(checkpoints["vit"], weights_only=True))
    del net.context_length, net.vocab_size
    for name, number in [("input_resolution", 64), ("context_length", 77), ("vocab_size", 49408)]:
        net.register_buffer(name, torch.tensor(number))
    path = tmp_path_factory.mktemp("archive") / "vit.pt"
    inputs = (torch.zeros(1, 3, 64, 64), clip.tokenize(["a cat"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on Python branches
        torch.jit.trace(net, inputs, check_trace=False).save(str(path))
    return path
