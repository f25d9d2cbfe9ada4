"""The page in a real browser, as a person uses it: Debian's Chromium, without a network."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path

import bench_page
import numpy as np
import psutil
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import vlscore

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here: apt-get install chromium"
)
BOXES, HEAT, SECOND = "photo with boxes", "heat map", 1000
expect.set_options(timeout=30 * SECOND)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A fresh server's process and address, started as `make app` does, with a home of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {"HOME": str(log.parent), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        bench_page.wait_for(f"{address}/_stcore/health", process)
        yield psutil.Process(process.pid), address
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # As root, Chromium needs --no-sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(server, browser):
    """Open the page in a session of its own; no request may leave the machine."""
    contexts, requests, address = [], [], server[1]

    def open_page(width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(30 * SECOND)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        button(page, "Find it!").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    here = (address, address.replace("http", "ws"), "data:", "blob:")
    assert requests and [each for each in requests if not each.startswith(here)] == []


@pytest.fixture
def page(open_page):
    return open_page()


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def pictures(page, name):
    return page.get_by_alt_text(name, exact=True)


def source(page, name):
    """The address of the only picture of this name."""
    expect(pictures(page, name)).to_have_count(1)
    return pictures(page, name).get_attribute("src")


def settle(page):
    """Wait for the end of a run: what is below on the page comes last."""
    expect(page.get_by_test_id("stApp")).to_have_attribute(
        "data-test-script-state", "notRunning", timeout=30 * SECOND
    )


def open_chooser(page):
    """Unfold the gallery, which folds as soon as a photo is chosen."""
    settle(page)
    folded = page.get_by_text("(open to choose others)")
    if folded.count() and not page.get_by_test_id("stFileUploader").is_visible():
        folded.click()
        page.get_by_test_id("stFileUploader").wait_for(state="visible")


def take(page, example):
    open_chooser(page)
    button(page, example).click()
    page.get_by_text(f"{example}, ").wait_for()
    settle(page)


def find(page, *prompts):
    page.get_by_role("textbox").fill("\n".join(prompts))
    button(page, "Find it!").click()
    for prompt in prompts:
        page.get_by_text(prompt, exact=True).first.wait_for()
    button(page, "Boxes (JSON)").wait_for()


def upload(page, *files):
    """Choose files of (name, content, kind), beside those chosen before."""
    settle(page)
    page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(
        [{"name": name, "mimeType": mime, "buffer": content} for name, content, mime in files]
    )
    page.wait_for_timeout(SECOND)  # the upload begins a run
    settle(page)


def download(page, name):
    settle(page)  # a click while the page runs asks for a file that the run takes away
    with page.expect_download() as given:
        button(page, name).click()
    return Path(given.value.path()).read_bytes()


def facts(page):
    return json.loads(download(page, "Boxes (JSON)"))


@cache
def encoding_of(model, path):
    """What the page must find by itself, for all prompts of a photo."""
    return vlscore.encode(model, path, keep=128)


def boxes_of(model, path, prompt):
    return [list(box) for box in vlscore.localize(model, encoding_of(model, path), prompt).boxes]


def test_example_three_prompts_and_downloads(page, lite0, chelsea):
    take(page, "cat")
    prompts = ("an image of a cat.", "a **bold** <b id='x'>dog</b> :smile: $x$", "an image of an ear.")
    find(page, *prompts)
    expect(page.get_by_text(prompts[1], exact=True).first).to_be_visible()
    assert page.locator("#x").count() == 0
    found = facts(page)
    assert [each["text"] for each in found["results"]] == list(prompts)
    assert pictures(page, BOXES).count() == sum(each["present"] for each in found["results"]) == 3
    for each in found["results"]:
        assert each["boxes"] == boxes_of(lite0, chelsea, each["text"])
    assert Image.open(BytesIO(download(page, "Picture (PNG)"))).format == "PNG"
    maps = np.load(BytesIO(download(page, "Saliency (NumPy)")), allow_pickle=False)
    direct = vlscore.localize(lite0, encoding_of(lite0, chelsea), prompts[0]).saliency.numpy()
    assert maps.shape == (3, *direct.shape) and np.allclose(maps[0], direct, atol=1e-4)


def test_a_slider_moved_by_a_key_changes_boxes_and_not_the_heat(page):
    take(page, "cannon")
    find(page, "an image of a cannon.")
    before = facts(page)["results"][0]["boxes"]
    heat, boxes = source(page, HEAT), source(page, BOXES)
    slider = page.get_by_role("slider", name="Threshold")
    slider.focus()
    for _ in range(20):
        slider.press("ArrowRight")
    expect(page.locator(f'img[src="{boxes}"]')).to_have_count(0)
    page.get_by_text("0.450", exact=True).wait_for()
    page.wait_for_timeout(SECOND)
    assert facts(page)["results"][0]["boxes"] != before
    assert source(page, HEAT) == heat


def test_own_photo_by_the_file_dialogue_then_a_bad_one(page, lite0, tmp_path):
    path = vlscore.hand_boxed_photos(ROOT / "data" / "photos")["imagenet_15_99"].path
    upload(page, ("../<i>goose</i>.jpg", path.read_bytes(), "image/jpeg"))
    page.get_by_text("../<i>goose</i>.jpg, 512 × 512").or_(
        page.get_by_text("goose</i>.jpg, 512 × 512")
    ).wait_for()
    find(page, "an image of a goose.")
    assert facts(page)["results"][0]["boxes"] == boxes_of(lite0, path, "an image of a goose.")
    upload(page, ("bad.jpg", path.read_bytes()[:200], "image/jpeg"))
    page.get_by_text("give a complete JPEG, PNG or WebP file").wait_for()
    expect(button(page, "Find it!")).to_be_enabled()  # for the photo that is good
    assert "Traceback" not in page.content()
    take(page, "goose")
    find(page, "an image of a goose.")


def test_the_result_is_in_the_first_screen_beside_the_photo(page):
    take(page, "cat")
    find(page, "an image of a cat.")
    expect(page.get_by_test_id("stFileUploader")).not_to_be_visible()
    chosen, boxes = (pictures(page, name).bounding_box() for name in ("chosen photo", BOXES))
    assert boxes["x"] >= chosen["x"] + chosen["width"]
    assert boxes["y"] + boxes["height"] <= 900
    expect(page.get_by_text("Refine boxes")).to_be_visible()
    expect(page.get_by_role("slider", name="Temperature")).not_to_be_visible()


def test_several_photos_give_galleries_and_labels(page, lite0):
    photos = vlscore.hand_boxed_photos(ROOT / "data" / "photos")
    names = {"goose.jpg": "imagenet_15_99", "drum.jpg": "imagenet_10_541"}
    upload(page, *((name, photos[each].path.read_bytes(), "image/jpeg") for name, each in names.items()))
    page.get_by_text("2 photos (open to choose others)").wait_for()
    page.get_by_role("textbox").fill("an image of a drum.\nan image of a goose.")
    button(page, "Find it!").click()
    button(page, "Boxes (COCO)").wait_for()
    shown = page.get_by_role("tabpanel").first.get_by_role("img")
    expect(shown).to_have_count(2)
    assert [shown.nth(n).get_attribute("alt") for n in range(2)] == ["drum.jpg", "goose.jpg"]
    archive = zipfile.ZipFile(BytesIO(download(page, "Boxes (COCO)")))
    facts = json.loads(archive.read("coco.json"))
    boxes = [
        [x, y, x + w, y + h]
        for each in facts["annotations"]
        if (each["image_id"], each["category_id"]) == (2, 1)
        for x, y, w, h in [each["bbox"]]
    ]
    assert boxes == boxes_of(lite0, photos[names["drum.jpg"]].path, "an image of a drum.")


def test_fifty_megapixels_are_taken_and_more_refused(page):
    content = BytesIO()
    Image.radial_gradient("L").resize((10_000, 5_000)).convert("RGB").save(content, "JPEG", quality=85)
    upload(page, ("large.jpg", content.getvalue(), "image/jpeg"))
    page.get_by_text("large.jpg, 10000 × 5000 pixels").wait_for()
    find(page, "an image of a ball.")
    assert facts(page)["size"] == [10_000, 5_000]
    content = BytesIO()
    Image.new("1", (10_000, 5_001)).save(content, "PNG")
    upload(page, ("larger.png", content.getvalue(), "image/png"))
    page.get_by_text("more than 50 megapixels: give a smaller copy").wait_for()


def test_another_model_asks_anew(page):
    take(page, "drawn scene")
    prompts = page.get_by_role("textbox").input_value().splitlines()
    page.get_by_role("combobox", name="Model").click()
    page.get_by_role("option", name="scenes-rn").click()
    expect(page.get_by_role("slider", name="Threshold")).to_have_value("0.65")
    find(page, *prompts)
    found = facts(page)
    assert found["model"] == "scenes-rn" and all(each["present"] for each in found["results"])


def test_four_sessions_at_once_get_their_own_answers(server, open_page, lite0):
    photos = vlscore.hand_boxed_photos(ROOT / "data" / "photos")
    asked = {"cat": "chelsea", "goose": "imagenet_15_99", "drum": "imagenet_10_541", "cup": "coffee"}
    pages = {name: open_page() for name in asked}
    for name, page in pages.items():
        take(page, name)
    for page in pages.values():
        button(page, "Find it!").click()
    for name, page in pages.items():
        pictures(page, HEAT).wait_for()
        found = facts(page)
        prompt = f"an image of a {name}."
        assert found["image"] == name and len(found["results"]) == 1
        assert found["results"][0]["text"] == prompt
        assert found["results"][0]["boxes"] == boxes_of(lite0, photos[asked[name]].path, prompt)
    assert server[0].memory_info().rss < 4 * 2**30


def test_speed_is_measured_from_a_choice_and_from_keys(server, browser):
    seconds = bench_page.measure(browser, server[1], moves=4)
    assert list(seconds) == ["gallery", "first result", "Threshold", "Temperature"]
    assert seconds["first result"] > 0 and len(seconds["Temperature"]) <= 4
    assert all(each > 0 for each in seconds["Threshold"] + seconds["Temperature"])
    text = bench_page.report(seconds | {"Threshold": [0.125, 0.25, 0.5], "Temperature": []})
    assert "Threshold: median 0.25 s, longest 0.50 s of 3 moves\nTemperature: - of 0 moves" in text


def test_narrow_screen_needs_no_sideways_scrolling(open_page):
    page = open_page(390)
    take(page, "cat")
    find(page, "an image of a cat.", "an image of " + "a very long line of words, " * 8)
    page.get_by_text("Show the maps that contribute").click()
    page.get_by_text(re.compile(r"map \d+:")).first.wait_for()
    page.wait_for_timeout(SECOND)
    wide = "e => e.getBoundingClientRect().width && e.scrollWidth > e.clientWidth + 1"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not page.get_by_test_id("stMain").evaluate(wide)


def test_binds_to_this_machine_only(server):
    listening = [each.laddr.ip for each in server[0].net_connections("tcp") if each.status == "LISTEN"]
    assert set(listening) == {"127.0.0.1"}


def test_the_books_picture_is_of_this_page(page):
    """VLSCORE_PICTURES=1 writes it again."""
    take(page, "cat")
    page.get_by_text("Refine boxes").click()
    settle(page)
    find(page, "an image of a cat.")
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    shown = (
        Image.open(BytesIO(page.screenshot())).convert("RGB").resize((1024, 720), Image.Resampling.LANCZOS)
    )
    kept = ROOT / "book" / "_static" / "app.jpg"
    if os.environ.get("VLSCORE_PICTURES"):
        shown.save(kept, quality=88)
    pair = [np.asarray(each.resize((64, 40)), float) for each in (shown, Image.open(kept))]
    assert np.abs(np.subtract(*pair)).mean() < 6  # of 255
    assert np.corrcoef(pair[0].ravel(), pair[1].ravel())[0, 1] > 0.9
