"""The reference of the module: every public name is on one page, in the overview, and leads to its source."""

import inspect
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from bs4 import BeautifulSoup

import vlscore

ROOT = Path(__file__).parent.parent
BOOK, SITE = ROOT / "book", ROOT / "_build" / "html" / "book"
ROLES = {
    "autofunction": "func",
    "autoclass": "class",
    "autoexception": "exc",
    "py:data": "data",
    "py:module": "mod",
}
# A directive for a name of `vlscore` itself, and what is indented below it.
MEMBER = re.compile(rf"^\.\. ({'|'.join(ROLES)}):: (?:vlscore\.)?((?!vlscore$)\w+)$\n((?:\n|   .*\n)*)", re.M)
KINDS = {"func": inspect.isroutine, "class": inspect.isclass, "exc": inspect.isclass, "mod": inspect.ismodule}


def pages() -> list[str]:
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    chapters = [each for part in contents["parts"] for each in part["chapters"]]
    (reference,) = [each for each in chapters if each["file"] == "book/api"]
    return [Path(each["file"]).name for each in reference["sections"]]


@cache
def read_page(name: str) -> str:
    return (BOOK / "api" / f"{name}.md").read_text()


def members(page: str) -> list[tuple[str, str, str]]:
    """(directive, name, what is below it) of each public name that a page documents."""
    return MEMBER.findall(read_page(page))


def everything():
    return [(page, *member) for page in pages() for member in members(page)]


def first_sentence(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!et al\.)(?<=\.) (?=[A-Z`])", paragraph)[0]


def purpose(directive: str, name: str, below: str) -> str:
    """The first sentence of a docstring; a constant has none, so of what the page says of it."""
    if directive != "py:data":
        return first_sentence(inspect.getdoc(getattr(vlscore, name)))
    return first_sentence(re.sub(r"^   :.*\n", "", below, flags=re.M).strip())


def test_every_public_name_is_on_one_page():
    assert Counter(name for _, _, name, _ in everything()) == Counter(vlscore.__all__)


@pytest.mark.parametrize("page", pages())
def test_a_page_says_first_when_it_is_needed(page):
    title, introduction, *_ = read_page(page).split("\n\n")
    assert title.startswith("# ") and introduction[0] not in "#`:"


@pytest.mark.parametrize(("directive", "name"), [each[1:3] for each in everything()])
def test_a_name_is_documented_as_what_it_is(directive, name):
    found = getattr(vlscore, name)
    kinds = [kind for kind, is_it in KINDS.items() if is_it(found)] or ["data"]
    assert ROLES[directive] in kinds
    assert (ROLES[directive] == "exc") == (inspect.isclass(found) and issubclass(found, Exception))


def test_the_overview_has_a_table_for_each_page_in_order():
    assert re.findall(r"^## (.*)$", (BOOK / "api.md").read_text(), re.M) == [
        f"[{read_page(page).splitlines()[0][2:]}](api/{page}.md)" for page in pages()
    ]


@pytest.mark.parametrize("page", pages())
def test_the_overview_lists_each_name_with_its_purpose(page):
    """A docstring that begins in another way needs the same sentence in book/api.md."""
    _, section = (BOOK / "api.md").read_text().split(f"](api/{page}.md)\n")
    rows = re.findall(r"^\| .* \|$", section.split("\n## ")[0], re.M)
    assert rows == [
        "| Name | Purpose |",
        *(
            f"| {{py:{ROLES[each]}}}`~vlscore.{name}` | {purpose(each, name, below)} |"
            for each, name, below in members(page)
        ),
    ]


def test_values_are_those_of_the_code():
    shown = {
        name: value[1] for *_, name, below in everything() if (value := re.search(r":value: (.*)", below))
    }
    assert "FITS" in shown
    assert shown == {name: repr(getattr(vlscore, name)) for name in shown}


@pytest.fixture(scope="module")
def models():
    """`vlscore.load_model`, which loads each model once for all examples."""
    return cache(vlscore.load_model)


EXAMPLE = re.compile(r"```python\n((?:(?!```).)*)```\n\nIt prints\n\n```text\n(.*?)```", re.S)


@pytest.mark.parametrize("page", [page for page in pages() if EXAMPLE.search(read_page(page))])
def test_each_example_prints_what_the_page_shows(page, models, monkeypatch, capsys):
    """A page's examples go on from each other, so they run in its order, on every CPU in float32."""
    found = torch.cpu.get_capabilities() | {"avx512_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    monkeypatch.setattr(vlscore, "load_model", models)
    monkeypatch.chdir(ROOT)
    names = {}
    for code, shown in EXAMPLE.findall(read_page(page)):
        exec(compile(code, page, "exec"), names)
        assert capsys.readouterr().out == shown


def test_most_pages_show_what_their_example_prints():
    assert sum(bool(EXAMPLE.search(read_page(page))) for page in pages()) > len(pages()) - 3


@cache
def parsed(path: Path) -> BeautifulSoup:
    assert path.exists(), f"{path.name} is not built: run `make book` before"
    return BeautifulSoup(path.read_text(), "html.parser")


@cache
def by_id(path: Path) -> dict:
    """The elements of a file that have an id."""
    return {each["id"]: each for each in parsed(path).find_all(id=True)}


def built(page: str) -> BeautifulSoup:
    return parsed(SITE / "api" / f"{page}.html")


def test_every_public_name_is_built_where_its_page_is():
    wanted = {name: page for page, _, name, _ in everything()}
    found = [
        (each["id"].removeprefix("module-").removeprefix("vlscore."), page)
        for page in pages()
        for each in built(page).find_all(id=re.compile(r"^(module-)?vlscore\.\w+$"))
    ]
    assert sorted(found) == sorted(wanted.items())


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, kind, name, _ in everything() if kind.startswith("auto")]
)
def test_a_name_leads_to_the_source_where_it_is_defined(page, name):
    (link,) = by_id(SITE / "api" / f"{page}.html")[f"vlscore.{name}"].select("a:has(.viewcode-link)")
    path, anchor = link["href"].split("#")
    file = (SITE / "api" / path).resolve()
    module = getattr(vlscore, name).__module__.replace(".", "/")
    assert file == (SITE.parent / "_modules" / f"{module}.html").resolve() and anchor == name
    assert re.search(rf"(def|class) {name}\b", by_id(file)[name].text)
