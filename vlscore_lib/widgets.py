"""Widgets: sliders over pictures, and the controls of the playground."""

from __future__ import annotations

from functools import lru_cache

from vlscore_lib.encoding import as_text
from vlscore_lib.errors import VLScoreError, import_extra
from vlscore_lib.figures import draw_overlay, plain_text
from vlscore_lib.images import load_image
from vlscore_lib.models.base import Model, list_sources
from vlscore_lib.prompts import TEMPLATE


def make_picture_slider(pictures: list[bytes], labels: list[str], name: str, start: int = 0, alt: str = ""):
    """Build a slider over pictures that also moves in a published page, without a kernel.

    Args:
        pictures: contents of JPEG files.
        labels: the slider's values, one for each picture.
        name: caption of the slider.
        start: index of the picture to show first.
        alt: description of the pictures in words, shown as the slider's tooltip.

    Returns:
        An ipywidgets box to end a cell with.

    Raises:
        VLScoreError: ipywidgets is not installed.
    """
    ipywidgets = import_extra("ipywidgets", "notebooks")

    images = [ipywidgets.Image(value=picture, format="jpeg") for picture in pictures]
    stack = ipywidgets.Stack(images, selected_index=start)
    # On the slider: a published page cannot show an Image that has a tooltip (ipywidgets 8.1).
    facts = {"description": name, "tooltip": alt or name, "style": {"description_width": "initial"}}
    slider = ipywidgets.SelectionSlider(options=labels, index=start, **facts)
    ipywidgets.jslink((slider, "index"), (stack, "selected_index"))
    return ipywidgets.VBox([slider, stack])


def build_playground(model: Model, encode, localize, image=None, prompt: str = TEMPLATE.format("cat")):
    """Build widgets to try VL-Score: photo, prompt, layer, kind of maps, τ and α.  They need a live kernel.

    The photo is encoded again when the photo, the layer or the maps change; the prompt and the sliders are
    answered from the `Encoding`.  Errors are shown below the controls.

    Args:
        image: a path or a PIL image to start with; None waits for an upload.
        encode: a function of an image, a layer and options of the source -> an `Encoding`.
        localize: a function of an encoding, a prompt, τ and α -> a `Localization`.

    Returns:
        An ipywidgets box to end a cell with.
    """
    ipywidgets = import_extra("ipywidgets", "notebooks")

    controls, kinds = build_controls(model, prompt), list_sources(model)
    own_size = {"align_self": "flex-start", "max_width": "100%"}
    shown, told = ipywidgets.Image(format="jpeg", layout=own_size), ipywidgets.Label()
    photo = {}  # the image that is encoded, and a small copy that is drawn at each move

    def show(image):
        photo.update(image=image, small=image.copy())
        photo["small"].thumbnail((960, 960))
        encoded.cache_clear()
        answer()

    @lru_cache(maxsize=4)
    def encoded(layer, kind):
        told.value = "encoding …"
        return encode(photo["image"], layer, **kinds[kind])

    def answer(_=None):
        if not photo:
            return
        asked = {name: control.value for name, control in controls.items()}
        try:
            encoding = encoded(asked["layer"], asked["maps"])
            found = localize(encoding, asked["text"], asked["temperature"], asked["threshold"])
        except VLScoreError as error:
            told.value = plain_text(str(error), 300)
            return
        told.value = plain_text(as_text([found]).splitlines()[0], 300)
        shown.value = draw_overlay(photo["small"], found.saliency, encoding, found.boxes, found.prompt, 480)

    def take(change):
        try:
            show(open_upload(change["new"]))
        except VLScoreError as error:
            told.value = plain_text(str(error), 300)

    upload = ipywidgets.FileUpload(accept="image/*", description="own photo")
    upload.observe(take, "value")
    for control in controls.values():
        control.observe(answer, "value")
    if image is None:
        told.value = "choose a photo"
    else:
        show(load_image(image))
    return ipywidgets.VBox([upload, *controls.values(), told, shown])


def build_controls(model, prompt):
    """Build the playground's widgets, except for the photo's, by the name of what each one sets."""
    ipywidgets = import_extra("ipywidgets", "notebooks")

    wide = {"layout": {"width": "95%", "max_width": "480px"}, "style": {"description_width": "90px"}}
    range_of_alpha = {"min": 0.05, "max": 0.95, "step": 0.01}
    range_of_tau = {"min": -3, "max": 1, "step": 0.05}  # powers of 10
    return {
        "text": ipywidgets.Text(prompt, description="text", **wide),
        "layer": ipywidgets.Dropdown(
            options=model.layers, value=model.layers[-1], description="layer", **wide
        ),
        "maps": ipywidgets.Dropdown(options=list(list_sources(model)), description="maps", **wide),
        "temperature": ipywidgets.FloatLogSlider(
            model.temperature, description="temperature", **range_of_tau, **wide
        ),
        "threshold": ipywidgets.FloatSlider(
            model.threshold, description="threshold", **range_of_alpha, **wide
        ),
    }


def open_upload(files):
    """Open the image in the value of a FileUpload widget."""
    if not files:
        raise VLScoreError("no photo was chosen: choose one file")
    try:
        return load_image(bytes(files[0]["content"]))
    except VLScoreError as error:
        raise VLScoreError(f"{files[0]['name']}: {error}") from None
