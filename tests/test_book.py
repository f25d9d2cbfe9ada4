"""The published book in a real browser, opened from the disk: Debian's Chromium, without a network."""

import re
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parent.parent
SITE = ROOT / "_build" / "html"
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here: apt-get install chromium"
)
HERE = ("file:", "data:", "blob:")
SECOND = 1000
DARK = (
    "book/intro",
    "book/labels",
    "book/results_speed",
    "book/api/boxes",
    "notebooks/05_speed_and_fidelity",
)
# Text that a reader sees, code and equations left out.
PROSE = """() => {
  const shown = document.body.cloneNode(true);
  shown.querySelectorAll("script, style, pre, code, mjx-container").forEach(each => each.remove());
  return shown.textContent;
}"""
HEADINGS = """[...document.querySelectorAll("main :is(h1, h2, h3, h4, h5, h6)")]
  .filter(each => each.checkVisibility()).map(each => [Number(each.tagName[1]), each.textContent])"""
IMAGES = """[...document.images].filter(each => each.checkVisibility())
  .map(each => ({source: each.src, alt: each.alt, width: each.naturalWidth}))"""
# Elements that reach beyond the screen, except inside of what scrolls by itself.
WIDE = """() => {
  const scrolls = each => each && each !== document.body
    && (getComputedStyle(each).overflowX !== "visible" || scrolls(each.parentElement));
  return [...document.querySelectorAll("main *")]
    .filter(each => each.getBoundingClientRect().right > innerWidth + 1 && !scrolls(each))
    .map(each => each.outerHTML.slice(0, 100));
}"""

# The page as it will stay: drawn in its new size, and nothing moves any more.
STILL = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  await frame(), await frame();
  await Promise.allSettled(document.getAnimations().map(each => each.finished));
  await frame(), await frame();
  return innerWidth;
}"""


def pages(entry=None) -> list[str]:
    """The pages of the table of contents, those of its sections too."""
    entry = entry or yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    nested = [each for key in ("parts", "chapters", "sections") for each in entry.get(key, [])]
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [page for each in nested for page in pages(each)]


@cache
def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    return {tag[key] for tag in parsed(path).find_all(True) for key in ("id", "name") if key in tag.attrs}


@pytest.fixture(scope="module")
def browser():
    assert (SITE / "index.html").exists(), "the book is not built: run `make book` before"
    with sync_playwright() as playwright:
        # As root, Chromium needs --no-sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser):
    """What all pages share: a screen, and no network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_offline(True)
    yield context
    context.close()


@pytest.fixture(scope="module", params=pages())
def opened(context, request):
    """A page of the book when all of it has been drawn, its file, and what went wrong until then."""
    path, wrong = SITE / f"{request.param}.html", []

    def stay_here(request):
        if not request.url.startswith(HERE):
            wrong.append(f"asks for {request.url}")

    page = context.new_page()
    page.set_default_timeout(20 * SECOND)
    page.on("request", stay_here)
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(f"not loaded: {request.url}"))
    page.goto(path.as_uri())
    page.evaluate("window.MathJax?.startup.promise")
    widgets = parsed(path).find_all("script", type="application/vnd.jupyter.widget-view+json")
    expect(page.get_by_role("slider")).to_have_count(len(widgets))
    yield page, path, wrong
    page.close()


@pytest.fixture
def page(opened):
    return opened[0]


def test_nothing_fails_and_nothing_leaves_the_machine(opened):
    page, _, wrong = opened
    page.evaluate("Promise.all([...document.images].map(each => each.decode()))")
    assert wrong == []


def test_equations_are_drawn(opened):
    page, path, _ = opened
    equations = parsed(path).find_all(class_="math")
    assert page.locator("mjx-container").count() >= len(equations)
    assert page.locator("merror, [data-mml-node=merror], mjx-merror").count() == 0
    assert re.findall(r"\\[(\[a-z].{,40}|\$\$.{,40}|\$[^$\n]+\$", page.evaluate(PROSE)) == []


def test_no_link_is_dead(page):
    links = page.evaluate("[...document.links].map(each => each.href)")
    local = {each for each in links if each.startswith("file:")}
    assert local
    for link in sorted(local):
        address, fragment = urldefrag(link)
        target = Path(unquote(urlsplit(address).path))
        assert target.is_file(), link
        assert target.is_relative_to(SITE), link
        if fragment:
            name = unquote(fragment)
            assert name in anchors(target), link


def test_pictures_load_and_say_what_they_show(page):
    for image in page.evaluate(IMAGES):
        assert image["width"] > 0, image
        assert len(image["alt"].split()) > 1, image
        assert not re.search(r"/|\.(jpe?g|png|svg|webp)$", image["alt"]), image


def test_headings_are_in_order(page):
    levels = page.evaluate(HEADINGS)
    assert [level for level, _ in levels].count(1) == 1 and levels[0][0] == 1
    for (above, _), (level, text) in pairwise(levels):
        assert level <= above + 1, text


def test_each_slider_changes_its_picture(page):
    for box in page.locator(".widget-vbox:has([role=slider])").all():
        slider, picture = box.get_by_role("slider"), box.locator("img:visible")
        expect(picture).to_have_count(1)
        source, before = picture.get_attribute("src"), picture.screenshot()
        alt, value = picture.get_attribute("alt"), slider.get_attribute("aria-valuetext")
        assert value in alt
        slider.press("ArrowRight")
        expect(picture).not_to_have_attribute("src", source)
        expect(picture).not_to_have_attribute("alt", alt)
        expect(slider).not_to_have_attribute("aria-valuetext", value)
        assert picture.evaluate("each => each.decode().then(() => each.naturalWidth)") > 0
        assert picture.screenshot() != before


def find_barriers(page, **options) -> list[str]:
    """What axe-core calls serious or critical, with the element."""
    found = Axe().run(page, options={"resultTypes": ["violations"]} | options).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    return [f"{each['id']}: {node['html'][:200]}" for each in serious for node in each["nodes"]]


def test_no_serious_barrier(page):
    assert find_barriers(page) == []


@pytest.mark.parametrize("name", DARK)
def test_no_serious_barrier_on_a_dark_page(browser, name):
    """Only the colours differ, so only their contrast is looked at, on a page of each kind."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    try:
        page = context.new_page()
        page.goto((SITE / f"{name}.html").as_uri())
        page.evaluate(STILL)
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert find_barriers(page, runOnly=["color-contrast"]) == []
    finally:
        context.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    try:
        assert page.evaluate(STILL) == 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate(WIDE) == []
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})
