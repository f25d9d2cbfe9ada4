"""The page: choose a photo, write words, see where they are.  `make app` serves it on this machine.

All of the method is in `vlscore`.  What is here asks, shows, and keeps each session's photos and encodings
in memory, apart from the other sessions'.  A slider or a prompt is answered from the `Encoding` at hand.
"""

import json
import os
import re
import string
from collections import OrderedDict
from dataclasses import replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from threading import Lock
from time import monotonic
from types import SimpleNamespace
from typing import NamedTuple

import altair as alt
import numpy as np
import pandas as pd
import streamlit as st
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from starlette.formparsers import MultiPartParser
from streamlit import net_util

import vlscore

ROOT = Path(__file__).parent
MEGABYTES, MEGAPIXELS = 20, 50  # most of an upload; config.toml has the first one too
SHOWN = 800  # longest side of a photo on the page, in pixels
CACHE_BYTES = 64 * 2**20  # of a session's encodings
MOST_PROMPTS = 10
KEEPS = (32, 64, 128, 256, 512, None)  # None is all maps, the exact method
TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
EXAMPLES = (
    "chelsea",
    "coffee",
    "imagenet_06_609",
    "imagenet_10_541",
    "imagenet_13_471",
    "imagenet_15_99",
    "imagenet_16_251",
)

# Starlette would write uploads of more than 1 MB to a temporary file.
MultiPartParser.spool_max_size = (MEGABYTES + 1) * 2**20
# Streamlit would ask a server outside for this machine's address to judge a request of another origin.
net_util.get_external_ip = lambda: None


# ── Photos ───────────────────────────────────────────────────────────────────────────────────────


class Photo(NamedTuple):
    """A chosen photo: its name is only ever shown; ``shown`` is a small copy of it, upright."""

    name: str
    content: bytes
    digest: str
    size: tuple[int, int]
    shown: Image.Image


def decode(content: bytes) -> Image.Image:
    """Decode an upload to upright RGB; its size is looked up in the header first.

    Raises:
        vlscore.VLScoreError: too large, or no JPEG, PNG or WebP.
    """
    if len(content) > MEGABYTES * 2**20:
        raise vlscore.VLScoreError(f"the photo has more than {MEGABYTES} MB: give a smaller copy")
    return vlscore.load_image(content, ("JPEG", "PNG", "WEBP"), MEGAPIXELS)


def open_photo(name: str, content: bytes) -> Photo:
    """Check a file and make the copy that is shown; raises what `decode` does."""
    with locks().decode:
        image = decode(content)
        size = image.size
        image.thumbnail((SHOWN, SHOWN))
    return Photo(name, content, sha256(content).hexdigest(), size, image)


class Example(NamedTuple):
    """A photo of the gallery with the prompt that goes with it."""

    content: bytes
    prompt: str
    thumbnail: bytes


@st.cache_resource
def examples() -> dict[str, Example]:
    """Photos that come with installed packages, and a scene for the models that know drawn scenes only."""
    photos, found = vlscore.hand_boxed_photos(ROOT / "data" / "photos"), {}
    for name in EXAMPLES:
        photo = photos[name]
        found[photo.label] = photo.path.read_bytes(), vlscore.TEMPLATE.format(photo.label)
    found["drawn scene"] = drawn_scene()
    return {name: Example(*each, _thumbnail(each[0])) for name, each in found.items()}


def drawn_scene() -> tuple[bytes, str]:
    """A scene as `vlscore.scenes` draws them, as PNG, and a prompt for each of its objects."""
    image, objects = vlscore.scenes.draw_scene(vlscore.scenes.scene_rng(1, 12), (400, 300), 2)
    names = [vlscore.scenes.classes()[index][1][0] for index, _ in objects]
    content = BytesIO()
    image.save(content, "PNG")
    return content.getvalue(), "\n".join(vlscore.TEMPLATE.format(name) for name in names)


def _thumbnail(content):
    image = decode(content)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return jpeg(image.crop((left, top, left + side, top + side)).resize((240, 240)))


# ── What is kept: models for all, encodings for a session ────────────────────────────────────────


@st.cache_resource
def locks() -> SimpleNamespace:
    """The process's locks: an encoder's hooks and a tokenizer serve one thread at a time, and of the
    decoded photos, which are large, there are two at most."""
    return SimpleNamespace(decode=Lock(), encode=Lock(), ask=Lock())


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def model_of(name: str) -> vlscore.Model:
    """A loaded model; the last two are kept, for all sessions."""
    model = vlscore.load_model(name)
    vlscore.fast_encoder(model)  # compiled while a photo is still being chosen
    return model


def size_in_bytes(encoding: vlscore.Encoding) -> int:
    """What the tensors of an encoding take in memory."""
    every = [*vars(encoding).values(), *(each for scale in encoding.scales for each in scale)]
    return sum(each.nbytes for each in every if isinstance(each, torch.Tensor))


class Recent:
    """Encodings by key; the least recently used go once all take more than ``limit`` bytes.

    The newest one stays whatever its size, since it is being looked at.
    """

    def __init__(self, limit: int = CACHE_BYTES):
        self.limit, self.held = limit, OrderedDict()

    def get(self, key) -> vlscore.Encoding | None:
        if key in self.held:
            self.held.move_to_end(key)
        return self.held.get(key)

    def put(self, key, encoding: vlscore.Encoding) -> None:
        self.held[key] = encoding
        self.held.move_to_end(key)
        while len(self.held) > 1 and self.size() > self.limit:
            self.held.popitem(last=False)

    def size(self) -> int:
        return sum(size_in_bytes(each) for each in self.held.values())


class Options(NamedTuple):
    """What the sidebar says; ``source`` is the options of `vlscore.encode` that choose the maps."""

    model: str
    source: dict
    keep: int | None
    refined: bool
    temperature: float
    threshold: float

    def key(self, photo: Photo) -> tuple:
        """All that an encoding depends on."""
        return photo.digest, self.model, *sorted(self.source.items()), self.keep, self.refined


def encoding_of(photo: Photo, options: Options) -> vlscore.Encoding:
    """The session's encoding of a photo, made now where it has none."""
    recent, key = st.session_state.recent, options.key(photo)
    bar = st.empty()  # keeps its place without an encoding, or all below would move up and flicker
    if (encoding := recent.get(key)) is None:
        bar.progress(0.0, "Waiting for another photo to be read …")
        with locks().encode:
            model, image = model_of(options.model), decode(photo.content)
            bar.progress(0.0, "Reading the photo …")
            encoding = vlscore.encode(
                model,
                image,
                **options.source,
                keep=options.keep,
                refined=options.refined,
                progress=lambda batches: timed(bar, batches),
            )
        bar.empty()
        recent.put(key, encoding)
    return encoding


def timed(bar, batches):
    """Pass the batches on and show how many are done and how long the others will take."""
    begun = monotonic()
    for done, batch in enumerate(batches):
        left = f", {(monotonic() - begun) / done * (len(batches) - done):.0f} s left" if done else ""
        bar.progress(done / len(batches), f"Encoding masked photos: {done} of {len(batches)} batches{left}")
        yield batch


# ── Pictures ─────────────────────────────────────────────────────────────────────────────────────


def shrink(found: vlscore.Localization, size: tuple[int, int], shown: tuple[int, int]):
    """The same with boxes in pixels of the small copy."""
    x, y = shown[0] / size[0], shown[1] / size[1]
    boxes = [(round(x0 * x), round(y0 * y), round(x1 * x), round(y1 * y)) for x0, y0, x1, y1 in found.boxes]
    return replace(found, boxes=boxes)


def with_boxes(photo: Photo, found: vlscore.Localization) -> Image.Image:
    """The small copy with the boxes on it."""
    picture = photo.shown.copy()
    pen, width = ImageDraw.Draw(picture), max(picture.size) // 200 + 1
    for x0, y0, x1, y1 in shrink(found, photo.size, picture.size).boxes:
        pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=vlscore.BOX_COLOUR, width=width)
    return picture


def with_heat(shown: Image.Image, saliency: torch.Tensor, input_size: int) -> Image.Image:
    """A photo under its heat map, in the colours of `vlscore.draw_localizations`."""
    heat = vlscore.heat_map(saliency, input_size).numpy()
    colours = Image.fromarray(colormaps[vlscore.COLOUR_MAP](heat, bytes=True)).convert("RGB")
    return Image.blend(shown, colours.resize(shown.size), 0.65)


def jpeg(picture: Image.Image) -> bytes:
    """A picture for the browser."""
    content = BytesIO()
    picture.save(content, "JPEG", quality=88)
    return content.getvalue()


def picture_of(photo: Photo, encoding: vlscore.Encoding, found: list[vlscore.Localization]) -> bytes:
    """All rows by `vlscore.draw_localizations`, as PNG."""
    shown = photo.shown.size
    small = replace(encoding, fit=vlscore.fit_region(shown, "squash"))
    title = f"{photo.name}: {encoding.model}, {encoding.layer}, {len(encoding.maps)} maps"
    rows = [shrink(each, photo.size, shown) for each in found]
    content = BytesIO()
    vlscore.draw_localizations(photo.shown, rows, small, title).savefig(content, format="png", dpi=100)
    return content.getvalue()


def saliency_file(found: list[vlscore.Localization], encoding: vlscore.Encoding) -> bytes:
    """The saliency maps (N, h, w) of N prompts as .npy; NaN where a prompt was not found."""
    shapes = [each.saliency.shape for each in found if each.saliency is not None]
    missing = torch.full(shapes[0] if shapes else encoding.maps.shape[1:], torch.nan)
    maps = [missing if each.saliency is None else each.saliency for each in found]
    content = BytesIO()
    np.save(content, torch.stack(maps).numpy(), allow_pickle=False)
    return content.getvalue()


# ── Words ────────────────────────────────────────────────────────────────────────────────────────


def prompts_of(text: str) -> list[str]:
    """One prompt for each line, without repetitions.

    Raises:
        vlscore.VLScoreError: none, or too many.
    """
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise vlscore.VLScoreError("there is no prompt: write what to look for, one thing per line")
    if len(prompts) > MOST_PROMPTS:
        raise vlscore.VLScoreError(f"there are {len(prompts)} prompts: write {MOST_PROMPTS} at most")
    return prompts


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", text)


def verdict(found: vlscore.Localization) -> str:
    """What was found, and the number that decided."""
    scored = f"best map {found.score:.3f}, empty image {found.base_score:.3f}"
    if found.present:
        return f"{len(found.boxes)} box{'es' * (len(found.boxes) != 1)}; score: {scored}"
    if found.score <= found.base_score:
        return f"Not found: no masked photo fits these words better than an empty image does ({scored})."
    return (
        f"Not found: too many everyday things fit this photo better (p = {found.p_absent:.2f},"
        f" at most {vlscore.PRESENT} is found; {scored})."
    )


# ── The page ─────────────────────────────────────────────────────────────────────────────────────


def needs(name: str) -> str | None:
    """What a model needs that is not here; None where it can be loaded, as far as its name tells."""
    family = vlscore.find_family(name)
    if family is None or family.is_here(name):
        return None
    file, home = family.weights(name), Path.home()
    folder = file.parent
    if folder.is_relative_to(home):
        folder = Path("~", folder.relative_to(home))
    return f"{file.name} in {folder}"


def choose_model() -> str:
    """The models that this page was started with stand first, then those that can be loaded here; the others
    say what they need."""
    names = [name for family in vlscore.FAMILIES for name in family.models]
    names.sort(key=lambda each: needs(each) is not None)
    further = [name for name in os.environ.get("VLSCORE_MODELS", "").split(",") if name]
    names = list(dict.fromkeys([*further, *names]))
    return st.selectbox(
        "Model", names, format_func=lambda each: f"{each} (needs {needs(each)})" if needs(each) else each
    )


def choose_options() -> Options | None:
    """The sidebar; None where the model cannot be loaded."""
    name = choose_model()
    if needs(name):
        st.info(
            f"{plain(name)} needs {plain(needs(name))}. Put the file there, or run `vlscore localize` once"
            f" with `--model {name}`, which downloads it; then reload this page."
        )
        return None
    try:
        model = model_of(name)
    except vlscore.VLScoreError as error:
        st.error(plain(str(error)))
        return None
    help = "Sharper maps and boxes, a box for each of several things, and a stricter “not found”."
    refined = st.toggle("Localise better than the report", key="refined", help=help)
    source = choose_source(model, refined)
    help = "Masked photos that are encoded; the others are predicted. All of them is the exact method."
    shown = {None: "all: exact"}
    keep = st.select_slider(
        "Speed against fidelity", KEEPS, 128, format_func=lambda each: shown.get(each, str(each)), help=help
    )
    default = model.refined_threshold if refined else model.threshold
    help = "Boxes are cut where the heat map is above this share of its maximum."
    threshold = st.slider(
        "Threshold", 0.05, 0.95, default, 0.005, format="%.3f", key=f"α {name} {refined}", help=help
    )
    help = "Low: the best few maps decide. High: all maps that beat an empty image share."
    steps = sorted({*TEMPERATURES, model.temperature})
    temperature = st.select_slider("Temperature", steps, model.temperature, key=f"τ {name}", help=help)
    return Options(name, source, keep, refined, temperature, round(threshold, 3))


def choose_source(model: vlscore.Model, refined: bool) -> dict:
    """Layer and kind of maps, as options of `vlscore.encode`."""
    fixed = model.is_vit and refined  # its maps are clusters of one layer's keys
    layer = st.selectbox("Layer", model.layers[::-1], key=f"layer {model.name}", disabled=fixed)
    kinds = vlscore.list_sources(model)
    kind = st.selectbox("Kind of maps", list(kinds), key=f"kind {model.name}", disabled=fixed)
    if fixed:
        return {}
    if refined:  # principal components are for plain maps
        kinds = {name: {"maps": each["maps"]} for name, each in kinds.items()}
    return {"layer": layer} | kinds[kind]


def choose(name: str, content: bytes) -> None:
    """Take a photo, or keep what is wrong with it to be said."""
    st.session_state.photo = st.session_state.problem = None
    try:
        st.session_state.photo = open_photo(name, content)
    except vlscore.VLScoreError as error:
        st.session_state.problem = str(error)


def choose_example(name: str) -> None:
    """Take an example and its prompt, unless there are words of one's own."""
    every = examples()
    if st.session_state.prompts.strip() in {"", *(each.prompt for each in every.values())}:
        st.session_state.prompts = every[name].prompt
    choose(name, every[name].content)


def choose_upload() -> None:
    """Take what the file dialogue gave; nothing where the file was taken away."""
    st.session_state.photo = st.session_state.problem = None
    if (file := st.session_state.upload) is not None:
        choose(file.name, file.getvalue())


def show_chooser() -> None:
    """The gallery and the file dialogue."""
    with st.container(horizontal=True, gap="small"):
        for name, example in examples().items():
            with st.container(width=104, gap="small"):
                st.image(example.thumbnail, width=104, alt=name)
                st.button(name, on_click=choose_example, args=(name,), width="stretch")
    st.file_uploader(
        f"Or your own photo: JPEG, PNG or WebP, {MEGABYTES} MB and {MEGAPIXELS} megapixels at most."
        " It stays in this machine's memory.",
        type=["jpg", "jpeg", "png", "webp"],
        key="upload",
        on_change=choose_upload,
    )


def show_result(photo: Photo, options: Options, prompts: list[str]) -> None:
    """Everything about the prompts: rows, scores, maps on request, downloads."""
    model = model_of(options.model)
    with locks().ask:
        texts = model.encode_text(prompts).cpu()  # a bad prompt is told before the long part
    encoding = encoding_of(photo, options)
    with locks().ask:
        asked = (options.temperature, options.threshold)
        found = [vlscore.localize(model, encoding, prompt, *asked) for prompt in prompts]
    if unknown := [word for prompt in prompts for word in model.unknown_words(prompt)]:
        words = ", ".join(dict.fromkeys(unknown))
        st.warning(plain(f"{model.name} does not know these words, which are left out: {words}"))
    with_maps = st.toggle("Show the maps that contribute", key="with_maps")
    for each, text in zip(found, texts):
        show_row(photo, encoding, each)
        if with_maps and each.present:
            show_maps(photo, encoding, text, options.temperature)
    show_scores(found, encoding, texts)
    show_downloads(photo, encoding, found)


def show_row(photo: Photo, encoding: vlscore.Encoding, found: vlscore.Localization) -> None:
    """A prompt, what became of it, and where it was found the photo with boxes and the heat map."""
    with st.container(border=True):
        st.text(found.prompt)
        if not found.present:
            st.warning(verdict(found))
            return
        st.success(verdict(found))
        left, right = st.columns(2)
        left.image(jpeg(with_boxes(photo, found)), width="stretch", alt="photo with boxes")
        heat = with_heat(photo.shown, found.saliency, encoding.input_size)
        right.image(jpeg(heat), width="stretch", alt="heat map")


def show_maps(photo: Photo, encoding: vlscore.Encoding, text: torch.Tensor, temperature: float) -> None:
    """The maps of the largest weights, of something that was found."""
    weights = vlscore.weights(encoding, text, temperature)
    small = photo.shown.copy()
    small.thumbnail((240, 240))
    best = weights.topk(min(6, int((weights > 0).sum())))
    with st.container(horizontal=True, gap="small"):
        for weight, index in zip(best.values.tolist(), best.indices.tolist()):
            picture = jpeg(with_heat(small, encoding.maps[index], encoding.input_size))
            st.image(picture, f"map {index}: {weight:.1%}", width=150, alt=f"map {index}")


def show_scores(found: list[vlscore.Localization], encoding: vlscore.Encoding, texts: torch.Tensor) -> None:
    """Bars of each prompt's cosines with the best masked photo, the whole one and an empty one."""
    rows = []
    for each, whole in zip(found, (texts @ encoding.image_embedding).tolist()):
        scores = {"best masked photo": each.score, "whole photo": whole, "empty image": each.base_score}
        rows += [{"words": each.prompt, "of": name, "score": score} for name, score in scores.items()]
    st.text("Scores: cosine of the words with the photo")
    st.altair_chart(score_chart(pd.DataFrame(rows)))


def score_chart(scores: pd.DataFrame) -> alt.LayerChart:
    """Bars in groups, the words of each written in a line of their own above it."""
    lines = ["", *scores["of"].unique()]
    group = alt.Chart(scores, height=alt.Step(18)).encode(alt.Y("words:N", sort=None, axis=None))
    bars = group.mark_bar().encode(
        alt.X("score:Q", title=None),
        alt.YOffset("of:N", sort=None, scale=alt.Scale(domain=lines)),
        alt.Color("of:N", sort=None, legend=alt.Legend(title=None, orient="top", columns=1)),
    )
    once = group.transform_filter(f"datum.of == '{lines[1]}'").transform_calculate(line="''")
    words = once.mark_text(align="left", baseline="middle", fontSize=13, color="gray", limit=280).encode(
        x=alt.value(0), yOffset=alt.YOffset("line:N"), text="words:N"
    )
    return bars + words


def show_downloads(photo: Photo, encoding: vlscore.Encoding, found: list[vlscore.Localization]) -> None:
    """The picture is drawn when it is asked for."""
    facts = json.dumps(vlscore.as_facts(photo.name, photo.size, encoding.model, found))
    files = {
        "Picture (PNG)": (lambda: picture_of(photo, encoding, found), "vlscore.png", "image/png"),
        "Boxes (JSON)": (facts, "vlscore.json", "application/json"),
        "Saliency (NumPy)": (saliency_file(found, encoding), "saliency.npy", "application/octet-stream"),
    }
    with st.container(horizontal=True):
        for name, (data, file, mime) in files.items():
            st.download_button(name, data, file, mime, on_click="ignore")


def main() -> None:
    """The page from top to bottom; Streamlit runs it again after every touch."""
    st.set_page_config("VL-Score: ask CLIP where", layout="wide")
    for name, value in {"photo": None, "problem": None, "wanted": None, "prompts": ""}.items():
        st.session_state.setdefault(name, value)
    st.session_state.setdefault("recent", Recent())
    st.title("VL-Score: ask CLIP where", anchor=False)
    st.text("Choose a photo, write what to look for, and see where it is.")
    show_chooser()  # first, to be seen while the model loads
    with st.sidebar:
        options = choose_options()
    photo = st.session_state.photo
    if st.session_state.problem:
        st.error(plain(st.session_state.problem))
    if photo is not None:
        st.text(f"{photo.name}, {photo.size[0]} × {photo.size[1]} pixels")
        st.image(jpeg(photo.shown), width=320, alt="chosen photo")
    hint = "an image of a dog.\nan image of a bicycle."
    text = st.text_area("What to look for, one thing per line", key="prompts", placeholder=hint)
    pressed = st.button("Find it!", type="primary", disabled=photo is None or options is None)
    if photo is None or options is None:
        return
    if pressed:  # kept, since a slider that is moved meanwhile starts the page anew
        st.session_state.wanted = options.key(photo)
    if (
        st.session_state.wanted != options.key(photo)
        and st.session_state.recent.get(options.key(photo)) is None
    ):
        return
    try:
        show_result(photo, options, prompts_of(text))
    except vlscore.VLScoreError as error:
        st.error(plain(str(error)))


if __name__ == "__main__":
    main()
