"""Widgets of the chapters: what they show, that they move, and when the photo is encoded."""

from datetime import UTC, datetime
from io import BytesIO

import pytest
from PIL import Image

import vlscore

CAT = "an image of a cat."


@pytest.fixture
def encoded(monkeypatch):
    """A list that grows by one at each call of `encode`: (layer, kind of maps)."""
    calls, encode = [], vlscore.encode

    def counted(model, image, layer=None, maps="activation", **options):
        calls.append((layer, maps))
        return encode(model, image, layer, maps=maps, **options)

    monkeypatch.setattr(vlscore, "encode", counted)
    return calls


class Playground:
    """The widgets of a playground, by what they are."""

    def __init__(self, *arguments, **options):
        self.box = vlscore.playground(*arguments, **options)
        self.upload, *controls, self.told, self.shown = self.box.children
        for control in controls:
            setattr(self, control.description, control)

    def choose(self, content, name="photo.png"):
        facts = {"type": "", "size": len(content), "last_modified": datetime.now(UTC)}
        self.upload.value = ({"name": name, "content": memoryview(content), **facts},)

    def answers(self, control, value):
        """Whether the picture changes when a control is moved."""
        before = self.shown.value
        getattr(self, control).value = value
        return self.shown.value != before


def png(image):
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


# ── Slider ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_slider_shows_the_picture_of_its_value_by_a_link_that_needs_no_kernel(monkeypatch):
    links = []
    monkeypatch.setattr("ipywidgets.jslink", lambda *ends: links.append(ends))
    pictures = [png(Image.new("RGB", (8, 8), colour)) for colour in ("red", "green", "blue")]
    slider, stack = vlscore.make_picture_slider(pictures, ["a", "b", "c"], "colour", 1, "a square").children
    assert (slider.description, slider.options, slider.value) == ("colour", ("a", "b", "c"), "b")
    assert (stack.selected_index, [each.value for each in stack.children]) == (1, pictures)
    assert slider.tooltip == "a square"
    assert [each.tooltip for each in stack.children] == [None] * 3  # with one, the page shows an error
    assert links == [((slider, "index"), (stack, "selected_index"))]


# ── Playground ─────────────────────────────────────────────────────────────────────────────────────


def test_each_slider_changes_the_answer_and_the_photo_is_encoded_once(lite0, chelsea, encoded):
    play = Playground(lite0, chelsea, CAT, keep=8)
    assert play.told.value.startswith(f"{CAT} 1 found; score ")
    assert play.answers("temperature", 1.0)
    assert play.answers("threshold", 0.7)
    assert play.answers("text", "an image of a dog.")
    assert encoded == [("head", "activation")]


def test_the_answer_is_that_of_localize(lite0, chelsea):
    play = Playground(lite0, chelsea, CAT, keep=8)
    play.temperature.value, play.threshold.value = 0.1, 0.5
    encoding = vlscore.encode(lite0, chelsea, keep=8)
    found = vlscore.localize(lite0, encoding, CAT, play.temperature.value, 0.5)
    assert play.shown.value == vlscore.draw_overlay(chelsea, found.saliency, encoding, found.boxes, CAT, 480)


def test_layer_and_maps_are_encoded_when_chosen_and_kept(vit, chelsea, encoded):
    play = Playground(vit, chelsea, keep=4)
    play.layer.value = "0"
    play.maps.value = "key, pca=4"
    play.layer.value = "1"
    play.maps.value = "activation"
    assert encoded == [("1", "activation"), ("0", "activation"), ("0", "key"), ("1", "key")]


def test_an_own_photo_is_encoded_and_answered(lite0, chelsea, encoded):
    play = Playground(lite0, keep=4)
    assert (play.told.value, play.shown.value, encoded) == ("choose a photo", b"", [])
    play.choose(png(Image.open(chelsea)))
    assert play.told.value.startswith(CAT)
    first = play.shown.value
    play.choose(png(Image.open(chelsea).rotate(90, expand=True)))
    assert play.shown.value != first
    assert len(encoded) == 2


@pytest.mark.parametrize("content", [b"", b"no photo", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_photo_is_told_and_the_last_answer_stays(lite0, chelsea, content):
    play = Playground(lite0, chelsea, CAT, keep=4)
    before = play.shown.value
    play.choose(content, "notes.txt")
    assert play.told.value.startswith("notes.txt: the image cannot be read as an image (")
    assert play.shown.value == before
    assert play.answers("threshold", 0.8)


def test_empty_words_are_told_and_the_next_words_are_answered(lite0, chelsea):
    play = Playground(lite0, chelsea, CAT, keep=4)
    assert not play.answers("text", " ")
    assert "the prompt is empty" in play.told.value
    assert play.answers("text", "an image of a dog.")


def test_absent_is_told_with_the_bare_photo(lite0, chelsea, monkeypatch):
    encoding = vlscore.encode(lite0, chelsea, keep=4)
    monkeypatch.setattr(vlscore, "saliency", lambda *_: None)
    play = Playground(lite0, chelsea, CAT, keep=4)
    assert "absent" in play.told.value
    assert play.shown.value == vlscore.draw_overlay(chelsea, None, encoding, (), CAT, 480)
