"""The protocol: what an evaluation measures, with the model's own values filled in."""

import dataclasses

import pytest

import vlscore

SWEEP = tuple(n / 20 for n in range(1, 20))


@pytest.mark.parametrize(
    ("name", "options", "alpha"),
    [
        ("rn", {}, 0.6),
        ("vit", {}, 0.55),
        ("rn", {"refined": True}, 0.475),
        ("vit", {"refined": True}, 0.5),
        ("vit", {"threshold": 0.33}, 0.33),
        ("rn", {"refined": True, "threshold": 0.05}, 0.05),
    ],
)
def test_temperature_and_threshold_are_the_model_s_unless_given_and_are_swept_too(
    request, name, options, alpha
):
    found = vlscore.Protocol(**options).resolve(request.getfixturevalue(name))
    assert (found.temperature, found.threshold) == (0.01, alpha)
    assert found.temperatures == (0.01, 1.0)
    assert found.thresholds == tuple(sorted({alpha, *SWEEP}))


def test_a_sweep_is_sorted_and_has_each_value_once(rn):
    options = {"temperature": 0.5, "temperatures": (2, 0.5, 0.1), "threshold": 0.4, "thresholds": (0.7, 0.2)}
    found = vlscore.Protocol(**options).resolve(rn)
    assert (found.temperatures, found.thresholds) == ((0.1, 0.5, 2), (0.2, 0.4, 0.7))


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("rn", {}, "layer4"),
        ("rn", {"layer": "layer2"}, "layer2"),
        ("rn", {"refined": True}, "layer4"),
        ("vit", {}, "1"),
        ("vit", {"maps": "key", "pca": 3}, "1"),
    ],
)
def test_the_layer_is_the_model_s_last_unless_given(request, name, options, layer):
    assert vlscore.Protocol(**options).resolve(request.getfixturevalue(name)).layer == layer


def test_a_refined_vit_is_read_at_its_fine_layer(vit):
    assert vlscore.Protocol(refined=True).resolve(vit).layer == vit.fine_layer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_named(rn, precision):
    assert vlscore.Protocol(precision=precision).resolve(rn).precision == precision
    assert vlscore.Protocol().resolve(rn).precision == vlscore.choose_precision("auto", rn.device)


def test_what_is_resolved_stays_as_it_is(rn):
    once = vlscore.Protocol(keep=4, thresholds=(0.3,), seed=5, slow_baselines=2).resolve(rn)
    assert once.resolve(rn) == once
    assert (once.keep, once.seed, once.slow_baselines) == (4, 5, 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"temperatures": (1, float("nan"))}, "temperature is nan"),
        ({"threshold": 1}, "threshold is 1"),
        ({"thresholds": (0.5, 2)}, "threshold is 2"),
        ({"templates": "nonsense"}, "unknown templates 'nonsense'"),
        ({"layer": "nonsense"}, "nonsense"),
        ({"keep": 0}, "keep is 0"),
        ({"plain_threshold": 0.5}, "plain_threshold is for refined runs"),
        ({"plain_threshold": 1.5, "refined": True}, "threshold is 1.5"),
        ({"fit": "nonsense"}, "unknown fit 'nonsense'"),
        ({"maps": "key"}, "key"),
    ],
)
def test_a_value_out_of_range_is_told(rn, options, said):
    with pytest.raises(vlscore.VLScoreError, match=said):
        vlscore.Protocol(**options).resolve(rn)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": 0.1}, "VL-Score, τ = 0.1"),
        ({"temperature": 1.0}, "VL-Score, τ = 1"),
        ({"temperature": 0.03, "refined": True}, "refined VL-Score, τ = 0.03"),
        ({"temperature": 0.03, "refined": True, "keep": 0}, "mask-free refinement"),
    ],
)
def test_the_method_is_named_by_its_temperature(options, name):
    assert vlscore.Protocol(**options).method == name
    assert vlscore.method_name(**options) == name


def test_a_protocol_has_the_options_of_encode():
    options, protocol = (
        {field.name: field.default for field in dataclasses.fields(each)}
        for each in (vlscore.EncodingOptions, vlscore.Protocol)
    )
    assert options.items() <= protocol.items()
