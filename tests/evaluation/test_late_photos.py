"""Photos that pass the check of a data set and cannot be read when their turn comes."""

import json

import numpy as np
import pytest
from evaluation_helpers import QUICK, contents, draw

import vlscore
from vlscore_lib.files import to_json


def vanish(path):
    path.unlink()


def cut_short(path):
    path.write_bytes(path.read_bytes()[:300])


def become_text(path):
    path.write_text("no photo")


SPOILS = [vanish, cut_short, become_text]


def draw_checked(tmp_path):
    """A data set of ten photos in two shards, checked while all were whole."""
    return vlscore.read_dataset(draw(tmp_path / "scenes", 10, 3, (64, 64)), skip_bad=True)


def check_late_photos(rn, tmp_path, spoil, client=None):
    """One of the first shard, and all of the second, are left out and listed."""
    checked = draw_checked(tmp_path)
    bad = [checked.photos[number] for number in (2, 8, 9)]
    for photo in bad:
        spoil(photo.path)
    records = vlscore.evaluate(rn, checked, tmp_path / "run", client=client, **QUICK)
    expected = [photo.name for photo in checked.photos if photo not in bad]
    assert list(records["image"]) == expected
    before = contents(tmp_path / "run")
    skipped = json.loads(before["summary.json"])["skipped"]
    assert [str(photo.path) in line for photo, line in zip(bad, skipped, strict=True)] == [True] * 3
    assert list(vlscore.read_run(tmp_path / "run")[1]["image"]) == expected
    vlscore.evaluate(rn, checked, tmp_path / "run", resume=True, **QUICK)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_photo_that_fails_late_is_left_out_and_listed(rn, tmp_path, spoil):
    """On workers, see `test_workers`, where some run."""
    check_late_photos(rn, tmp_path, spoil)


def test_without_being_asked_to_skip_it_stops_the_run_in_a_line(rn, tmp_path):
    dataset = vlscore.read_dataset(draw(tmp_path / "scenes", 9, 3, (64, 64)))
    vanish(dataset.photos[8].path)
    with pytest.raises(vlscore.VLScoreError, match="does not exist"):
        vlscore.evaluate(rn, dataset, tmp_path / "run", **QUICK)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_run_of_which_no_photo_can_be_read_is_told(rn, tmp_path):
    checked = draw_checked(tmp_path)
    for photo in checked.photos:
        vanish(photo.path)
    with pytest.raises(vlscore.VLScoreError, match=r"no photo could be measured: .*does not exist"):
        vlscore.evaluate(rn, checked, tmp_path / "run", **QUICK)


def test_json_holds_no_number_that_is_not_finite(tmp_path):
    facts = {"a": [1.5, float("nan"), {"b": np.float64("inf")}], "c": (float("-inf"), "nan", None, 3)}
    content = to_json(facts)
    strict = json.loads(content, parse_constant=lambda word: pytest.fail(f"not JSON: {word}"))
    assert strict == {"a": [1.5, None, {"b": None}], "c": [None, "nan", None, 3]}
