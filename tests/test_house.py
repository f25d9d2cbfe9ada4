"""The layout of the code: what may import what, sizes, names, and what the documents say of it."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = sorted(ROOT.glob("vlscore*.py"))
ROOMS, SCRIPTS = sorted((ROOT / "vlscore_lib").rglob("*.py")), sorted((ROOT / "scripts").glob("*.py"))
PAGE = [ROOT / "app.py", *sorted((ROOT / "page").glob("*.py"))]
CODE = [*TOP, *ROOMS, *SCRIPTS, *PAGE]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path):
    return str(path.relative_to(ROOT))


@cache
def nodes(path) -> list[ast.AST]:
    """All nodes of a file's syntax; nothing changes a file that has been read."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path) -> set[str]:
    """The modules that a file imports, inside of functions too; also those named to `import_extra`."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "import_extra":
            found.add(node.args[0].value)
    return found


def packages(path) -> set[str]:
    return {module.split(".")[0] for module in imports(path)}


# ── Imports ──────────────────────────────────────────────────────────────────────────────────────


def lint_imports(folder):
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path):
    """The packages and their rules, to be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path in TOP:
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "vlscore_lib", tmp_path / "vlscore_lib")
    return tmp_path


def test_imports_point_down(copy):
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout


def test_a_family_s_file_is_named_in_the_registry_alone():
    """Files of models that are in no layer: the registry loads them by name; they import nothing above."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in rules if each.get("containers") == ["vlscore_lib.models"]]
    layered = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    files = {path.stem: path for path in (ROOT / "vlscore_lib" / "models").glob("*.py")}
    families = files.keys() - layered - {"__init__"}
    registry = files["registry"].read_text()
    assert {"openclip", "hf_clip", "lite0_minilm"} <= families
    for name in families:
        assert f'"{name}"' in registry
        assert not imports(files[name]) & {f"vlscore_lib.models.{each}" for each in ("registry", "listing")}
        for path in ROOMS:
            assert f"vlscore_lib.models.{name}" not in imports(path), path


@pytest.mark.parametrize(
    "room, upward",
    [
        ("masks.py", "import vlscore"),
        ("datasets/voc.py", "import vlscore_cli"),
        ("errors.py", "from vlscore_lib.files import write_whole"),
        ("masks.py", "from vlscore_lib.encoding import Encoding"),
        ("models/base.py", "from vlscore_lib.selection import select_maps"),
        ("models/base.py", "from vlscore_lib.models.registry import load_model"),
        ("boxes.py", "from vlscore_lib.evaluation.metrics import box_iou"),
        ("evaluation/metrics.py", "from vlscore_lib.evaluation.runs import Run"),
        ("datasets/voc.py", "from vlscore_lib.datasets.reading import read_dataset"),
        ("images.py", "def inside():\n    from vlscore_lib.figures import show_boxes"),
    ],
)
def test_an_import_that_points_up_fails_the_check(copy, room, upward):
    path = copy / "vlscore_lib" / room
    path.write_text(f"{path.read_text()}\n\n{upward}\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


def test_a_room_without_a_floor_fails_the_check(copy):
    (copy / "vlscore_lib" / "attic.py").write_text('"""A room that nobody placed."""\n')
    done = lint_imports(copy)
    assert done.returncode == 1
    assert "attic" in done.stdout


OURS = {"vlscore_lib", "app", "page", *(path.stem for path in (*TOP, *SCRIPTS))}


@pytest.mark.parametrize("path", [*SCRIPTS, *PAGE], ids=name_of)
def test_what_a_person_touches_imports_only_vlscore(path):
    others = {each.stem for each in SCRIPTS} if path in SCRIPTS else set()
    others = others or {"page"}
    assert packages(path) & OURS <= {"vlscore"} | others


def test_notebooks_import_only_vlscore():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        found = re.findall(r"(?:import|from) (vlscore\w*)", path.read_text())
        assert set(found) <= {"vlscore"}, path.name


def test_the_module_of_the_method_imports_the_rooms_alone():
    assert packages(ROOT / "vlscore.py") & OURS == {"vlscore_lib"}


# ── Sizes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [*TOP, *ROOMS, *SCRIPTS], ids=name_of)
def test_a_file_is_one_room(path):
    most = 800 if path.name == "vlscore.py" else 450
    assert len(path.read_text().splitlines()) <= most


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_no_function_is_longer_than_a_page(path):
    functions = [node for node in nodes(path) if isinstance(node, ast.FunctionDef)]
    assert [each.name for each in functions if each.end_lineno - each.lineno >= 60] == []


# ── Names ────────────────────────────────────────────────────────────────────────────────────────


def is_private(name: str) -> bool:
    return name.strip("_") != "" and name.startswith("_") and not name.endswith("__")


def own_names(path) -> set[str]:
    """What a file defines: functions, classes, variables, attributes and fields."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


@cache
def all_names() -> set[str]:
    return set().union(*map(own_names, CODE))


def borrowed(path) -> set[str]:
    """Private names of another file of this project that a file imports, reads or patches."""
    own, defined, found = own_names(path), all_names(), set()
    private = {each for each in defined - own if is_private(each)}
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlscore"):
            found |= {alias.name for alias in node.names if is_private(alias.name)}
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            found |= {node.attr} & defined
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and path in TESTS:
            found |= {node.value} & private
    return found


@pytest.mark.parametrize("path", [*CODE, *TESTS], ids=name_of)
def test_no_private_name_of_another_file_is_used(path):
    assert borrowed(path) == set()


def test_the_check_of_private_names_finds_one(tmp_path):
    path = tmp_path / "test_it.py"
    private = "_" + "percent"  # or this file would be one that uses it
    path.write_text(f"import vlscore_lib\n\n\nprint(vlscore_lib.evaluation.tables.{private})\n")
    assert borrowed(path) == {private}


def test_the_public_names_exist_and_none_is_private():
    import vlscore

    assert len(set(vlscore.__all__)) == len(vlscore.__all__)
    assert [name for name in vlscore.__all__ if not hasattr(vlscore, name)] == []
    assert [name for name in vlscore.__all__ if is_private(name)] == []


# ── What is installed ────────────────────────────────────────────────────────────────────────────

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STANDARD = set(sys.stdlib_module_names)
NEEDED_BY = {  # which extras a file may count on beside the core
    "vlscore_lib/evaluation/tables.py": ["notebooks"],
    "vlscore_lib/evaluation": ["evaluation", "models"],
    "vlscore_lib/datasets": ["evaluation"],
    "vlscore_lib/prompts.py": ["models"],
    **{f"vlscore_lib/models/{each}": ["models"] for each in ("openclip", "hub", "hugging", "listing", "vit")},
    "vlscore_lib/widgets.py": ["notebooks"],
    "vlscore.py": ["evaluation"],
    "vlscore_cli.py": ["evaluation"],
    "app.py": ["app"],
    "page/": ["app"],
    "scripts": ["dev"],
    "tests": ["dev"],
}


@cache
def installed() -> dict[str, list[str]]:
    return packages_distributions()


def declared(extras) -> set[str]:
    """The distributions that the core and some extras name, those of extras inside extras included."""
    needs, waiting = set(PROJECT["dependencies"]), list(extras)
    while waiting:
        for need in PROJECT["optional-dependencies"][waiting.pop()]:
            if need.startswith("vlscore["):
                waiting += need.removeprefix("vlscore[").removesuffix("]").split(",")
            needs.add(need)
    return {re.split(r"[<>=\[]", need)[0].lower().replace("_", "-") for need in needs}


@pytest.mark.parametrize("path", [*CODE, *TESTS], ids=name_of)
def test_every_imported_package_is_declared(path):
    extras = next((each for place, each in NEEDED_BY.items() if name_of(path).startswith(place)), [])
    theirs, local = declared(extras), OURS | {each.stem for each in TESTS}
    distributions = installed()
    missing = {
        package
        for package in packages(path) - STANDARD - local
        if not theirs & {each.lower().replace("_", "-") for each in distributions.get(package, [package])}
    }
    assert missing == set()


# ── What the documents say ───────────────────────────────────────────────────────────────────────


def mentioned(document: str, section: str) -> set[str]:
    """Files and folders in code style in a section of a document."""
    text = (ROOT / document).read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`([\w./-]+(?:\.py|/))`", text))


@pytest.mark.parametrize(
    "document, section", [("README.md", "Layout"), ("CONTRIBUTING.md", "Where things go")]
)
def test_every_path_that_a_document_names_exists(document, section):
    assert [path for path in mentioned(document, section) if not (ROOT / path).exists()] == []


def test_the_layout_names_every_folder_and_module_of_the_root():
    folders = {f"{path.parts[0]}/" for path in map(Path, tracked()) if len(path.parts) > 1}
    modules = {path for path in tracked() if "/" not in path and path.endswith(".py")}
    assert {each for each in folders if not each.startswith(".")} | modules <= mentioned(
        "README.md", "Layout"
    )


def test_contributing_names_every_room():
    rooms = {name_of(path) for path in ROOMS if path.parent.name == "vlscore_lib" and path.stem != "__init__"}
    folders = {f"{name_of(path.parent)}/" for path in ROOMS if path.parent.name != "vlscore_lib"}
    assert rooms | folders <= mentioned("CONTRIBUTING.md", "Where things go")


def tracked() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if (ROOT / line).exists()]
