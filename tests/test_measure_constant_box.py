"""Boxes that ignore the photo, on annotations alone: against boxes by hand and a run of `evaluate`."""

import measure_constant_box as study
import numpy as np
import pytest

import vlscore

ANNOTATION = """<annotation><filename>{name}.jpg</filename><size><width>100</width><height>200</height>
<depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>cat</name>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
</object>"""


def write(folder, name, *boxes):
    objects = "".join(OBJECT.format(x0, y0, x1 - 1, y1 - 1) for x0, y0, x1, y1 in boxes)
    (folder / f"{name}.xml").write_text(ANNOTATION.format(name=name, objects=objects))


def test_hits_are_those_of_boxes_by_hand(tmp_path, capsys):
    write(tmp_path, "whole", (0, 0, 100, 200))  # IoU with a share s of each side: s²
    write(tmp_path, "middle", (25, 50, 75, 150))  # 0.5 of each side: (0.5 / s)² for s of 0.5 or more
    write(tmp_path, "corner", (0, 0, 20, 20), (80, 180, 100, 200))
    write(tmp_path, "empty")
    hits, single = study.measure(tmp_path)
    assert (len(hits), single) == (3, pytest.approx(2 / 3))
    shares = np.array(vlscore.SHARES)
    whole, middle = hits[2], hits[1]
    assert whole.tolist() == (shares**2 > 0.5).tolist()
    assert middle[shares >= 0.5].tolist() == ((0.5 / shares[shares >= 0.5]) ** 2 > 0.5).tolist()
    assert not hits[0].any()
    assert study.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "3 images, 66.67 % of them with one box"
    assert "box of  75% of each side: 33.33 %" in shown  # 0.75² > 0.5 for the whole, and (0.5 / 0.75)² = 0.44


def test_it_agrees_with_evaluate(drawn, scenes_rn):
    hits, _ = study.measure(drawn / "bbox" / "val")
    records = vlscore.evaluate(scenes_rn, vlscore.read_dataset(drawn), keep=1)
    constant = np.stack(records["constant"]) > 0.5
    assert hits.any(0).tolist() == constant.any(0).tolist()
    # The annotations hold objects of other classes too, of which evaluate counts only the asked one.
    assert (hits.sum(0) >= constant.sum(0)).all()


@pytest.mark.parametrize("content", [None, "no XML", "<annotation></annotation>"])
def test_a_folder_that_cannot_be_measured_is_told_in_a_line(tmp_path, capsys, content):
    if content:
        (tmp_path / "a.xml").write_text(content)
    assert study.main([str(tmp_path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
