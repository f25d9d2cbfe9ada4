"""What our extensions make of the book: the tables of cells have numbers, and percent signs stay in place."""

import json
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parent.parent
SITE = ROOT / "_build" / "html" / "notebooks"
CHAPTERS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(not SITE.exists(), reason="the book is not built: make book")


def shown_tables(cell: dict) -> list[str]:
    outputs = ["".join(output.get("data", {}).get("text/html", "")) for output in cell.get("outputs", [])]
    return [html for html in outputs if "<table" in html]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_each_table_of_a_cell_has_a_number_and_the_cell_s_name(chapter):
    cells = [cell for cell in json.loads(chapter.read_text())["cells"] if shown_tables(cell)]
    page = BeautifulSoup((SITE / f"{chapter.stem}.html").read_text(), "html.parser")
    tables = page.select("div.cell_output table")
    assert len(tables) == sum(len(shown_tables(cell)) for cell in cells) > 0
    for cell in cells:
        assert page.find(id=cell["metadata"]["table"]).table in tables
    for table in tables:
        assert re.fullmatch(r"Table \d+\.\d+ ", table.caption.select_one(".caption-number").text)
        assert table.caption.select_one(".caption-text").text


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_numbers_of_a_page_follow_each_other(chapter):
    page = BeautifulSoup((SITE / f"{chapter.stem}.html").read_text(), "html.parser")
    numbers = [each.text.split()[1] for each in page.select("caption .caption-number")]
    part = numbers[0].split(".")[0]
    assert numbers == [f"{part}.{n}" for n in range(1, len(numbers) + 1)]


def test_a_name_is_given_once():
    names = [
        cell["metadata"]["table"]
        for chapter in CHAPTERS
        for cell in json.loads(chapter.read_text())["cells"]
        if "table" in cell["metadata"]
    ]
    assert len(names) == len({*names}) > 25


@pytest.mark.parametrize("page", ["book/results.html", "notebooks/07_what_the_masks_add.html"])
def test_a_percent_sign_stays_on_the_line_of_its_number(page):
    text = " ".join(each.text for each in BeautifulSoup((SITE.parent / page).read_text(), "html.parser")("p"))
    assert re.search("\\d\N{NO-BREAK SPACE}%", text)
    assert not re.search(r"\d %", text)
