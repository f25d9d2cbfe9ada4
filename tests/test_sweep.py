"""A grid of parameters, run by papermill over a small chapter."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest
import sweep

PARAMETERS = 'MODEL = "epoch=3-step=12.ckpt"  # a = b\nLIMIT = 1\nOUT = RESULTS = None'
BODY = """
import json, pathlib
assert LIMIT < 9, "too many"
figure = {"value": LIMIT / 10}
keys = ("gt_known", "top1_loc", "max_box_acc", "max_box_acc_v2")
summary = {"images": LIMIT, "results": {key: figure for key in keys}}
folder = pathlib.Path(RESULTS)
folder.mkdir(parents=True, exist_ok=True)
(folder / f"{pathlib.Path(OUT).name}.json").write_text(json.dumps({"summary": summary, "model": MODEL}))
"""


def write_chapter(folder):
    """A notebook with four parameters, which writes a summary as chapter 04 does."""
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [parameters, nbformat.v4.new_code_cell(BODY)]
    path = folder / "chapter.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


@pytest.fixture
def chapter(tmp_path):
    return write_chapter(tmp_path)


def sweep_over(chapter, *words):
    return sweep.main([*words, "--chapter", str(chapter), "--out", str(chapter.parent / "sweep")])


def test_a_grid_is_every_combination():
    found = sweep.grid(["MODEL=a,b", "LIMIT=1,2", "LAYER=null", "THRESHOLDS=[0.5],[0.55, 0.6]"])
    assert len(found) == 8
    assert found[0] == {"MODEL": "a", "LIMIT": 1, "LAYER": None, "THRESHOLDS": [0.5]}
    assert found[-1] == {"MODEL": "b", "LIMIT": 2, "LAYER": None, "THRESHOLDS": [0.55, 0.6]}
    assert sweep.grid([]) == [{}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-1", 0.1),
        ("1E-1", 0.1),
        ("-2e3", -2000.0),
        ("1.e2", 100.0),
        (".5e1", 5.0),
        ("1.0e-1", 0.1),
        ("0.1", 0.1),
        ("7", 7),
        ("null", None),
        ("e1", "e1"),
        ("1e", "1e"),
        ("epoch=3-step=12.ckpt", "epoch=3-step=12.ckpt"),
    ],
)
def test_numbers_and_names_are_read_as_users_write_them(text, value):
    for word, expected in ((f"A={text}", value), (f"A=[{text}]", [value])):
        ((found,),) = ([row["A"]] for row in sweep.grid([word]))
        assert found == expected and type(found) is type(expected)


def test_paths_count_from_the_folder_of_the_command(monkeypatch, tmp_path):
    (tmp_path / "my.pt").touch()
    (tmp_path / "RN50").touch()
    monkeypatch.chdir(tmp_path)
    given = {"ROOT": "set", "OUT": "a/b", "RESULTS": "/x", "MODEL": "my.pt:gelu", "LIMIT": 3, "LAYER": "set"}
    expected = {"ROOT": f"{tmp_path}/set", "OUT": f"{tmp_path}/a/b", "MODEL": f"{tmp_path}/my.pt:gelu"}
    assert sweep.make_absolute(given) == given | expected
    for name in ("RN50", "lite0-minilm", "no.pt"):
        assert sweep.make_absolute({"MODEL": name}) == {"MODEL": name}
    assert sweep.make_absolute({"ROOT": None}) == {"ROOT": None}


def test_long_values_give_names_that_files_can_have():
    names = [sweep.label({"ROOT": f"/{'folder/' * 60}{end}", "LIMIT": 2}) for end in "ab"]
    assert len(set(names)) == 2 and all(len(name.encode()) <= 150 for name in names)
    assert len(sweep.label({"ROOT": "/" + "é" * 300}).encode()) <= 150
    assert sweep.label({"ROOT": "a/b", "LIMIT": 2}) == "ROOT-a-b_LIMIT-2"


class Swept(NamedTuple):
    """A sweep that has ended: its chapter, the code, what it printed, and the folder before and after."""

    chapter: Path
    code: int
    out: str
    err: str
    folders: list[Path]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Three runs in two processes at a time; the first fails."""
    chapter, before = write_chapter(tmp_path_factory.mktemp("swept")), Path.cwd()
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = sweep_over(chapter, "MODEL=epoch=4-step=1.ckpt", "LIMIT=9,2,4", "--jobs", "2")
    return Swept(chapter, code, out.getvalue(), err.getvalue(), [before, Path.cwd()])


def test_a_default_with_an_equals_sign_hides_no_parameter(swept):
    sweep.check_names(swept.chapter, ["MODEL", "OUT", "RESULTS"])
    kept = (swept.chapter.parent / "sweep" / "results").glob("*.json")
    assert [json.loads(each.read_text())["model"] for each in kept] == ["epoch=4-step=1.ckpt"] * 2


@pytest.mark.parametrize("word", ["LIMIT", "LIMIT=", "LIMIT=[1", "LIMIT={"])
def test_a_word_that_is_no_choice_is_told(capsys, chapter, word):
    assert sweep_over(chapter, word) == 2
    assert word in capsys.readouterr().err


def test_an_unknown_parameter_is_an_error_and_nothing_runs(capsys, chapter):
    assert sweep_over(chapter, "LIMITS=1,2") == 2
    assert "has no parameter LIMITS: choose one of MODEL, LIMIT" in capsys.readouterr().err
    assert not (chapter.parent / "sweep").exists()


def test_the_parameters_of_chapter_04_are_those_that_a_sweep_sets():
    sweep.check_names(sweep.CHAPTER, ["OUT", "RESULTS", "MODEL", "ROOT", "LAYER", "MAPS", "KEEP", "LIMIT"])


def test_runs_are_gathered_into_one_table_and_not_repeated(swept, capsys):
    lines = swept.out.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["MODEL-epoch=4-step=1.ckpt_LIMIT-2", "2", "20.0"],
        ["MODEL-epoch=4-step=1.ckpt_LIMIT-4", "4", "40.0"],
    ]
    folder = swept.chapter.parent / "sweep"
    assert (folder / "table.txt").read_text().splitlines() == lines
    kept = folder / "results" / "MODEL-epoch=4-step=1.ckpt_LIMIT-2.json"
    facts = json.loads(kept.read_text())
    facts["summary"]["images"] = 77  # would be overwritten by a second run
    kept.write_text(json.dumps(facts))
    assert sweep_over(swept.chapter, "MODEL=epoch=4-step=1.ckpt", "LIMIT=2") == 0
    assert "77" in capsys.readouterr().out


def test_the_working_directory_stays(swept):
    before, after = swept.folders
    assert after == before


def test_a_run_that_fails_is_named_and_the_others_go_on(swept):
    name = "MODEL-epoch=4-step=1.ckpt_LIMIT-9"
    assert swept.code == 1
    assert f"failed: {name}: AssertionError: too many" in swept.err
    assert "LIMIT-4" in swept.out
    assert (swept.chapter.parent / "sweep" / f"{name}.ipynb").exists()


def test_names_of_runs_are_names_of_files():
    assert sweep.label({"MODEL": "a/b@c", "LIMIT": 2}) == "MODEL-a-b-c_LIMIT-2"
    assert sweep.label({}) == "defaults"
