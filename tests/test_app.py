"""The page without a browser: what is asked, what is kept, what is said."""

import asyncio
import inspect
import json
import os
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import streamlit
import torch
from PIL import Image, PngImagePlugin
from starlette.requests import Request
from streamlit.testing.v1 import AppTest
from streamlit.web.server import server_util

import vlscore
from page import kept, many, photos, pictures, words
from vlscore_lib import scenes

ROOT = Path(__file__).parent.parent
# Streamlit's import sets it, and the kernels of the notebooks, tested later, would inherit it.
os.environ.pop("MPLBACKEND", None)


def button(page, label):
    return next(each for each in page.button if each.label == label)


def said(elements):
    return [each.value for each in elements]


def find(page, example, prompts):
    button(page, example).click().run()
    page.text_area[0].set_value(prompts).run()
    return button(page, "Find it!").click().run()


def encoded(width, height, mode="RGB", form="PNG"):
    content = BytesIO()
    Image.new(mode, (width, height)).save(content, form)
    return content.getvalue()


@pytest.fixture(autouse=True, scope="module")
def encoded_once():
    """Encode the same pixels with the same options once: many tests look at one photo."""
    known, encode = {}, vlscore.encode

    def encode_once(model, image, **options):
        given = inspect.signature(encode).bind(model, image, **options)
        given.apply_defaults()
        chosen = sorted(set(given.arguments) - {"model", "image", "progress"})
        pixels = vlscore.load_image(image)
        key = model.name, pixels.size, pixels.tobytes(), repr([given.arguments[each] for each in chosen])
        if key not in known:
            known[key] = encode(model, image, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlscore, "encode", encode_once)
        yield


@pytest.fixture
def page(monkeypatch, tmp_path):
    """The page in a session of its own, on a machine without CLIP's weights."""
    monkeypatch.setenv("HOME", str(tmp_path))
    page = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120).run()
    assert not page.exception
    return page


@pytest.fixture
def downloads(monkeypatch):
    """What the page's download buttons would give, by file name."""
    files = {}
    monkeypatch.setattr(
        streamlit, "download_button", lambda label, data, file, *_, **__: files.update({file: data})
    )
    return files


@pytest.fixture
def encodings(monkeypatch):
    """The models' names of all calls of `vlscore.encode`."""
    calls, encode = [], vlscore.encode

    def counting(model, *arguments, **options):
        calls.append(model.name)
        return encode(model, *arguments, **options)

    monkeypatch.setattr(vlscore, "encode", counting)
    return calls


# ── Results ──────────────────────────────────────────────────────────────────────────────────────


def test_page_gives_what_the_command_line_gives(page, downloads, run, chelsea):
    prompts = ["an image of a cat.", "an image of a dog."]
    find(page, "cat", "\n".join(prompts))
    code, out, _ = run("localize", chelsea, *prompts, "--model", "lite0-minilm", "--keep", "128", "--json")
    assert code == 0
    assert json.loads(downloads["vlscore.json"]) == json.loads(out) | {"image": "cat"}


@pytest.mark.parametrize(
    ("name", "photo"), [("cat", "chelsea"), ("drum", "imagenet_10_541"), ("cannon", "imagenet_13_471")]
)
def test_example_is_found_where_a_person_saw_it(page, downloads, name, photo):
    find(page, name, f"an image of a {name}.")
    truth = vlscore.hand_boxed_photos(ROOT / "data" / "photos")[photo].boxes
    (result,) = json.loads(downloads["vlscore.json"])["results"]
    assert vlscore.box_iou(result["boxes"], truth) > 0.5
    assert len(page.success) == 1 and page.success[0].value.startswith("1 box")


def test_example_brings_its_prompt_but_leaves_ones_own_words(page):
    button(page, "cup").click().run()
    assert page.text_area[0].value == "an image of a cup."
    page.text_area[0].set_value("a saucer").run()
    button(page, "jeep").click().run()
    assert page.text_area[0].value == "a saucer"


def test_drawn_scene_is_found_by_its_model(page, downloads):
    page.selectbox[0].set_value("scenes-rn").run()
    button(page, "drawn scene").click().run()
    prompts = page.text_area[0].value.splitlines()
    button(page, "Find it!").click().run()
    image, objects = scenes.draw_scene(scenes.scene_rng(1, 12), (400, 300), 2)
    model = vlscore.load_model("scenes-rn")
    results = json.loads(downloads["vlscore.json"])["results"]
    for result, prompt, (_, truth) in zip(results, prompts, objects, strict=True):
        direct = vlscore.localize(model, image, prompt, keep=128)
        assert result["boxes"] == [list(box) for box in direct.boxes]
        assert vlscore.box_iou(result["boxes"], [truth]) > 0.5


def test_not_found_is_said_with_the_number_that_decided(page, lite0, chelsea):
    page.toggle(key="refined").set_value(True).run()
    find(page, "cat", "an image of a cat.\nan image of a bus.")
    direct = vlscore.localize(lite0, chelsea, "an image of a bus.", keep=128, refined=True)
    assert not direct.present
    alternatives = [each.proto.imgs[0].alt for each in page.image]
    assert alternatives[-2:] == ["photo with boxes", "heat map"] and alternatives.count("heat map") == 1
    assert len(page.success) == 1
    assert said(page.warning)[0].startswith("Not found")
    assert f"p = {direct.p_absent:.2f}" in said(page.warning)[0]


def test_verdict_of_a_photo_that_loses_to_the_empty_image():
    absent = vlscore.Localization("a cat", False, [], None, 0.1, 0.25)
    assert words.verdict(absent).startswith("Not found")
    assert "best map 0.100, empty image 0.250" in words.verdict(absent)


def test_refined_vit_takes_no_choice_of_maps(page):
    page.selectbox[0].set_value("scenes-vit").run()
    assert not page.selectbox[1].disabled and not page.selectbox[2].disabled
    page.selectbox[2].set_value("key, pca=4").run()
    page.toggle(key="refined").set_value(True).run()
    assert page.selectbox[1].disabled and page.selectbox[2].disabled
    find(page, "drawn scene", "an image of a yellow cross.")
    assert not page.error and not page.exception


def test_maps_that_contribute_are_shown_when_asked_for(page, lite0, chelsea):
    find(page, "cat", "an image of a cat.")
    before = len(page.image)
    page.toggle(key="with_maps").set_value(True).run()
    shown = [caption for image in page.image for caption in image.captions if caption]
    encoding = vlscore.encode(lite0, chelsea, keep=128)
    text = lite0.encode_text(["an image of a cat."])[0]
    best = vlscore.weights(encoding, text, lite0.temperature).argmax().item()
    assert len(page.image) == before + 6
    assert shown[0].startswith(f"map {best}:")


def test_saliency_is_that_of_the_method_and_nan_where_nothing_was_found(lite0, chelsea):
    encoding = vlscore.encode(lite0, chelsea, keep=8)
    there = vlscore.localize(lite0, encoding, "an image of a cat.")
    absent = vlscore.Localization("a bus", False, [], None, 0.0, 1.0)
    maps = np.load(BytesIO(pictures.saliency_file([absent, there], encoding)), allow_pickle=False)
    assert np.isnan(maps[0]).all()
    assert np.array_equal(maps[1], there.saliency.numpy())


def test_boxes_are_drawn_where_they_are_in_the_large_photo():
    photo = photos.open_photo("large", encoded(1600, 1200))
    found = vlscore.Localization("a", True, [(400, 200, 1200, 1000)], None, 1.0, 0.0)
    red = np.asarray(pictures.with_boxes(photo, found))[..., 0] > 0
    assert photo.size == (1600, 1200) and photo.shown.size == (800, 600)
    ys, xs = red.nonzero()
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (200, 100, 600, 500)


# ── What is kept ─────────────────────────────────────────────────────────────────────────────────


def test_sliders_and_prompts_are_answered_without_encoding_again(page, downloads, encodings, lite0, chelsea):
    find(page, "cat", "an image of a cat.")
    assert encodings == ["lite0-minilm"]
    page.slider[0].set_value(0.7).run()
    page.text_area[0].set_value("an image of an ear.").run()
    temperature = next(each for each in page.select_slider if each.label == "Temperature")
    temperature.set_value(1.0).run()
    assert encodings == ["lite0-minilm"]
    encoding = vlscore.encode(lite0, chelsea, keep=128)
    direct = vlscore.localize(lite0, encoding, "an image of an ear.", 1.0, 0.7)
    (result,) = json.loads(downloads["vlscore.json"])["results"]
    assert (result["text"], result["boxes"]) == (direct.prompt, [list(box) for box in direct.boxes])


def test_another_photo_waits_for_the_button_and_the_first_is_remembered(page, encodings):
    find(page, "cat", "an image of a cat.")
    button(page, "goose").click().run()
    assert len(encodings) == 1 and not page.success
    button(page, "Find it!").click().run()
    assert len(encodings) == 2
    button(page, "cat").click().run()
    assert len(encodings) == 2 and page.success


def test_options_of_the_encoding_are_part_of_its_key():
    photo = photos.open_photo("a", encoded(8, 8))
    options = kept.Options("m", {"layer": "head", "maps": "activation"}, 128, False, 0.1, 0.3)
    others = [
        options._replace(model="n"),
        options._replace(source={"layer": "block7", "maps": "activation"}),
        options._replace(source={"layer": "head", "maps": "key", "pca": 4}),
        options._replace(keep=None),
        options._replace(refined=True),
    ]
    assert len({each.key(photo) for each in [options, *others]}) == 6
    assert options.key(photos.open_photo("a", encoded(8, 9))) != options.key(photo)
    assert options._replace(temperature=1.0, threshold=0.9).key(photo) == options.key(photo)


def test_cache_drops_the_least_recently_used_by_bytes():
    def encoding(n):
        cell, text = torch.zeros(n, 1, 1), torch.zeros(1)
        scales = (vlscore.Scale(torch.zeros(n)),)
        facts = ("m", "head", "activation", 224, vlscore.Fit((1, 1), (0, 0, 1, 1)))
        return vlscore.Encoding(*facts, cell, torch.zeros(0), torch.zeros(0), text, text, 1, 1, scales)

    assert kept.size_in_bytes(encoding(100)) == 4 * (100 + 1 + 1 + 100)
    recent = kept.Recent(2000)
    recent.put("a", encoding(100))
    recent.put("b", encoding(100))
    assert recent.get("a") is not None  # now b is the least recently used
    recent.put("c", encoding(100))
    assert list(recent.held) == ["a", "c"] and recent.size() <= 2000
    recent.put("d", encoding(1000))
    assert list(recent.held) == ["d"]


def test_sessions_do_not_see_each_other(page, encodings):
    find(page, "cat", "my secret words")
    other = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120).run()
    assert other.text_area[0].value == "" and not other.success
    assert other.session_state.photos == [] and not other.session_state.recent.held
    find(other, "cat", "an image of a cat.")
    assert len(encodings) == 2
    assert "my secret words" not in str(other)


def test_uploads_never_touch_the_disk():
    content = b"x" * (15 * 2**20)
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f.png"\r\n\r\n'
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]

    async def receive():
        return {"type": "http.request", "body": head + content + b"\r\n--b--\r\n", "more_body": False}

    async def is_on_disk():
        async with Request({"type": "http", "headers": headers}, receive).form() as form:
            assert form["f"].size == len(content)
            return form["f"].file._rolled

    assert not asyncio.run(is_on_disk())


def test_another_origin_is_refused_without_asking_outside(monkeypatch):
    monkeypatch.setattr("requests.get", lambda *_, **__: pytest.fail("asks outside"))
    assert server_util.is_url_from_allowed_origins("http://127.0.0.1:8501")
    assert not server_util.is_url_from_allowed_origins("http://example.org")


# ── What is refused, and how it is said ──────────────────────────────────────────────────────────


def upload(page, name, content):
    page.file_uploader[0].set_value((name, content, "image/png")).run()
    assert not page.exception
    return said(page.error)


@pytest.mark.parametrize("content", [b"", b"not a photo", encoded(64, 64)[:60], encoded(8, 8, form="GIF")])
def test_bad_file_is_told_with_what_to_do(page, content):
    (message,) = upload(page, "../../etc/<b>passwd</b>.png", content)
    assert "complete JPEG\\, PNG or WebP file" in message
    assert button(page, "Find it!").disabled
    assert upload(page, "good.png", encoded(64, 64)) == []
    assert not button(page, "Find it!").disabled


def test_more_than_fifty_megapixels_are_refused_before_they_are_decoded(page, monkeypatch):
    monkeypatch.setattr("vlscore_lib.images.turn_upright", lambda _: pytest.fail("decoded"))
    (message,) = upload(page, "large.png", encoded(10_000, 5_001, "1"))
    assert "more than 50 megapixels" in message and "smaller copy" in message
    with pytest.raises(vlscore.VLScoreError, match="50 megapixels"):
        photos.decode(encoded(20_000, 10_000, "1"))  # where Pillow itself gives up


def test_fifty_megapixels_are_taken():
    assert photos.decode(encoded(10_000, 5_000, "1")).size == (10_000, 5_000)


def test_megabytes_of_text_do_not_spoil_a_photo():
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)
    content = BytesIO()
    Image.new("RGB", (8, 6), "red").save(content, "PNG", pnginfo=info)
    assert photos.decode(content.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def test_more_than_twenty_megabytes_are_refused():
    with pytest.raises(vlscore.VLScoreError, match="20 MB"):
        photos.decode(encoded(8, 8) + bytes(20 * 2**20))


def test_prompts_are_shown_as_text(page):
    prompt = "a **cat** <img src=x onerror=alert(1)> :smile: $x$ [l](http://e.org)"
    find(page, "cat", prompt)
    assert prompt in said(page.text)
    shown = [*said(page.markdown), *said(page.success), *said(page.warning), *said(page.title)]
    assert not any("cat" in each for each in shown)


def test_a_prompt_that_is_too_long_is_told_as_text(page):
    find(page, "cat", "**a** <b> " * 60)
    assert "tokens" in said(page.error)[0] and "**a**" not in said(page.error)[0]
    assert r"\*\*a\*\* \<b\>" in said(page.error)[0]


def test_prompts_are_one_a_line():
    assert words.prompts_of("a cat\n\n  a dog \na cat\n") == ["a cat", "a dog"]
    with pytest.raises(vlscore.VLScoreError, match="no prompt"):
        words.prompts_of(" \n ")
    with pytest.raises(vlscore.VLScoreError, match="11 prompts"):
        words.prompts_of("\n".join(map(str, range(11))))


def test_model_that_is_not_here_says_what_it_needs(page, monkeypatch):
    names = page.selectbox[0].options
    assert names[:3] == ["lite0-minilm", "scenes-rn", "scenes-vit"]
    assert names[3] == "RN50 (needs RN50.pt in ~/.cache/clip)"
    monkeypatch.setattr(vlscore, "load_model", lambda name: pytest.fail("would download"))
    page.selectbox[0].set_value("RN50").run()
    assert "~/.cache/clip" in page.info[0].value.replace("\\", "")
    assert button(page, "Find it!").disabled and not page.exception


# ── Several photos ───────────────────────────────────────────────────────────────────────────────

CAT, DOG = "an image of a cat.", "an image of a dog."


@pytest.fixture
def three(chelsea):
    """Files of a cat, of a cup, and one that is no photo."""
    cup = vlscore.hand_boxed_photos(ROOT / "data" / "photos")["coffee"].path
    return {"a cat.png": chelsea.read_bytes(), "b cup.png": cup.read_bytes(), "c.png": b"no photo"}


def test_several_uploads_give_a_gallery_for_each_prompt(page, downloads, encodings, three, lite0):
    page.file_uploader[0].set_value([(name, content, "image/png") for name, content in three.items()]).run()
    assert not page.exception
    (problem,) = said(page.error)
    assert problem.startswith(r"c\.png\:") and "complete JPEG" in problem
    page.text_area[0].set_value(f"{DOG}\n{CAT}").run()
    button(page, "Find it!").click().run()
    assert not page.exception
    shown = [image.captions[0] for image in page.image if image.captions[0]]
    assert len(shown) == 4
    assert shown[2].startswith(r"a cat\.png\: 1 box") and r"b cup\.png\: not found" in shown[3]
    assert encodings == ["lite0-minilm"] * 2
    page.text_area[0].set_value(CAT).run()  # answered from what is kept
    assert encodings == ["lite0-minilm"] * 2
    facts = json.loads(zipfile.ZipFile(BytesIO(downloads["coco.zip"])).read("coco.json"))
    assert [(each["file_name"], each["width"], each["height"]) for each in facts["images"]] == [
        ("a cat.png", 451, 300),
        ("b cup.png", 600, 400),
    ]
    encoding = vlscore.encode(lite0, BytesIO(three["a cat.png"]).getvalue(), keep=128)
    expected = vlscore.localize(lite0, encoding, CAT).boxes
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (each["bbox"] for each in facts["annotations"])]
    assert boxes == expected and [each["name"] for each in facts["categories"]] == ["cat"]
    for form, name in (("voc", "a cat.xml"), ("yolo", "labels/a cat.txt")):
        assert zipfile.ZipFile(BytesIO(downloads[f"{form}.zip"])).read(name)


def test_a_folder_of_this_machine_below_the_one_given(page, monkeypatch, tmp_path, three):
    assert not page.text_input  # without --root there is none
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    for name, content in three.items():
        (root / "deep" / name).write_bytes(content)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "cat.png").write_bytes(three["a cat.png"])
    monkeypatch.setattr(sys, "argv", ["app.py", "--root", str(root)])
    page.run()
    page.text_input[0].set_value("deep").run()
    assert [photo.name for photo in page.session_state.photos] == ["deep/a cat.png", "deep/b cup.png"]
    assert "c\\.png" in said(page.error)[0]
    for place in ("..", "../secret", str(tmp_path / "secret")):
        page.text_input[0].set_value(place).run()
        assert "leads out of photos" in said(page.error)[0]
        assert page.session_state.photos == []
    (root / "none").mkdir()
    page.text_input[0].set_value("none").run()
    assert "has no photo" in said(page.error)[0]


def test_more_photos_than_the_page_takes(monkeypatch, tmp_path):
    monkeypatch.setattr(many, "MOST_PHOTOS", 1)
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(encoded(8, 8))
    with pytest.raises(vlscore.VLScoreError, match="has 2 photos, 1 at most"):
        many.find_folder(tmp_path.resolve(), ".")


@pytest.mark.parametrize(
    "prompt, name",
    [("an image of a red dog.", "red dog"), ("a dog", "a dog"), ("an image of a .",) * 2],
)
def test_a_class_is_what_its_prompt_names(prompt, name):
    assert words.class_of(prompt) == name
