"""Chapters executed in place, as they are and with another model."""

import os
import subprocess
from pathlib import Path

import execute
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
PARAMETERS = 'MODEL = "lite0-minilm"  # of all figures\nLAYER = None\nMODELS = 3\nLIMIT = 40'
TWO_KINDS = 'CNN = "RN50"\nVIT = "ViT-B/16"  # beside it\nIMAGE = None'
NONE = "IMAGE = None"


def chapter(path, parameters, body="print(1 + 1)"):
    """A notebook of two cells, of which the second may use the parameters of the first."""
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells.append(nbformat.v4.new_code_cell(body, metadata={"mystnb": {"image": {"alt": "two words"}}}))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def parameters(path):
    return nbformat.read(path, as_version=4).cells[0].source


def output(path):
    return nbformat.read(path, as_version=4).cells[1].outputs[0].text


def test_a_model_goes_into_the_parameters_and_stays_there(tmp_path):
    path = chapter(tmp_path / "a.ipynb", PARAMETERS, "print(MODEL, LAYER, MODELS, LIMIT)")
    assert execute.main([str(path), "--model", "scenes-rn"]) == 0
    assert parameters(path) == PARAMETERS.replace("lite0-minilm", "scenes-rn")
    assert output(path) == "scenes-rn None 3 40\n"
    first = path.read_bytes()
    assert execute.main([str(path)]) == 0
    assert path.read_bytes() == first


@pytest.mark.parametrize("model, place", [("scenes-rn", "RN50"), ("scenes-vit", "ViT-B/16")])
def test_where_there_are_two_a_model_takes_the_place_of_its_kind(tmp_path, model, place):
    path = chapter(tmp_path / "a.ipynb", TWO_KINDS)
    assert execute.main([str(path), "--model", model]) == 0
    assert parameters(path) == TWO_KINDS.replace(place, model)


def test_a_chapter_without_a_model_is_executed_as_it_is(tmp_path):
    path = chapter(tmp_path / "a.ipynb", NONE)
    assert execute.main([str(path), "--model", "scenes-rn"]) == 0
    assert parameters(path) == NONE and output(path) == "2\n"


def test_the_path_of_a_checkpoint_counts_from_where_the_command_runs(tmp_path, monkeypatch, checkpoints):
    monkeypatch.chdir(checkpoints["vit"].parent)
    path = chapter(tmp_path / "a.ipynb", TWO_KINDS, "import pathlib; print(pathlib.Path(VIT).is_file())")
    assert execute.main([str(path), "--model", "vit.pt"]) == 0
    assert output(path) == "True\n"


@pytest.mark.parametrize("model", ["RN51", "RN50", ""])
def test_without_the_weights_nothing_is_executed(capsys, tmp_path, monkeypatch, model):
    monkeypatch.setenv("HOME", str(tmp_path))  # without weights of CLIP
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # and without a network
    path = chapter(tmp_path / "a.ipynb", PARAMETERS)
    before = path.read_bytes()
    assert execute.main([str(path), "--model", model]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("execute.py: ") and printed.err.count("\n") == 1
    assert path.read_bytes() == before


def test_a_chapter_that_fails_stays_as_it_was(capsys, tmp_path):
    path = chapter(tmp_path / "a.ipynb", PARAMETERS, "1 / 0")
    before = path.read_bytes()
    assert execute.main([str(path), "--model", "scenes-rn"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_descriptions_of_figures_are_kept(tmp_path):
    path = chapter(tmp_path / "a.ipynb", NONE)
    assert execute.main([str(path)]) == 0
    assert nbformat.read(path, as_version=4).cells[1].metadata["mystnb"]["image"]["alt"] == "two words"


def test_each_chapter_with_parameters_takes_a_model():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        cells = [each for each in notebook.cells if "parameters" in each.metadata.get("tags", [])]
        before = [each.source for each in cells]
        execute.set_model(notebook, "another", False)
        after = [each.source for each in cells]
        changed = [(a, b) for a, b in zip(before, after) if a != b]
        assert len(changed) == len(cells), path.name
        for a, b in changed:
            lines = [(x, y) for x, y in zip(a.splitlines(), b.splitlines(), strict=True) if x != y]
            assert len(lines) == 1 and '"another"' in lines[0][1]


@pytest.mark.parametrize("given, passed", [("", ""), ("MODEL=RN50", '--model "RN50"')])
def test_make_passes_a_model_only_when_it_is_given(given, passed):
    command = ["make", "-n", "--no-print-directory", "-o", ".venv/.ready", "notebooks", *given.split()]
    alone = os.environ | {"MAKEFLAGS": ""}  # also where make runs the tests
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True)
    assert done.stdout.split("execute.py")[1].strip() == passed
