"""The options of `encode`, and the checks of ranges that all commands share."""

import pytest

import vlscore
from vlscore_lib import errors


@pytest.mark.parametrize(
    "options, said",
    [
        ({"maps": "keys"}, "unknown maps 'keys': choose one of activation, attention, query, key, value"),
        ({"precision": "float64"}, "unknown precision 'float64'"),
        ({"fit": "stretch"}, "unknown fit 'stretch': choose one of squash, crop, pad"),
        ({"keep": -1}, "keep is -1: give a number of maps, or a fraction between 0 and 1"),
        ({"keep": 0}, "keep is 0, and only refined boxes need no masks: set refined, or keep 1"),
        ({"keep": 1.0}, "keep is 1.0"),
        ({"keep": True}, "keep is True"),
        ({"batch_size": 0}, "batch_size is 0: give 1 or more"),
        ({"pca": 3}, "pca is for query, key and value maps, not for activation"),
        ({"maps": "key", "pca": 3, "refined": True}, "refined takes no principal components"),
    ],
)
def test_an_option_out_of_range_is_told_in_a_line(rn, chelsea, options, said):
    for check in (vlscore.EncodingOptions(**options).check, lambda: vlscore.encode(rn, chelsea, **options)):
        with pytest.raises(vlscore.VLScoreError) as error:
            check()
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_the_options_are_taken_by_place_or_by_name(vit, chelsea):
    by_place = vlscore.encode(vit, chelsea, "0", "key", 2, None, "float32")
    by_name = vlscore.encode(vit, chelsea, layer="0", maps="key", pca=2, precision="float32")
    assert (by_place.layer, by_place.kind) == (by_name.layer, by_name.kind) == ("0", "key, pca=2")
    assert by_place.maps.equal(by_name.maps)


def test_more_components_than_there_are_are_told_before_an_image_is_read(vit):
    with pytest.raises(vlscore.VLScoreError, match="pca=17 is out of range: choose 1 to 16 components"):
        vlscore.Protocol(maps="key", pca=17).resolve(vit)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_temperature_is_a_finite_number_above_0(value):
    with pytest.raises(vlscore.VLScoreError, match=r"^--temperature is .*: give a number above 0$"):
        errors.check_temperature(value, "--temperature")


@pytest.mark.parametrize("value", [0, 1, -0.5, float("nan")])
def test_a_threshold_lies_between_0_and_1(value):
    with pytest.raises(vlscore.VLScoreError, match=r"^the threshold is .*: give a number between 0 and 1$"):
        errors.check_threshold(value)


def test_a_missing_package_names_the_extra():
    with pytest.raises(errors.MissingPackageError) as error:
        errors.import_extra("no_such_package.inside", "app")
    assert str(error.value) == (
        "this needs the package no_such_package: install it with pip install 'vlscore[app]'"
    )
