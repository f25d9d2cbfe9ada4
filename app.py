"""The web app: choose photos, enter prompts, and see where the objects are.  `make app` serves it.

All of the method is in `vlscore`.  What is here, and in `page`, asks and shows.  A slider or a prompt is
answered from the `Encoding` at hand.
"""

import json

import altair as alt
import pandas as pd
import streamlit as st
import torch
from streamlit import net_util

import vlscore
from page.kept import Options, Recent, encoding_of, model_of
from page.many import find_folder, open_photos, root_folder, show_many
from page.options import choose_options
from page.photos import MEGABYTES, MEGAPIXELS, Photo, examples, jpeg, locks
from page.pictures import picture_of, saliency_file, with_boxes, with_heat
from page.words import plain, prompts_of, verdict

# Otherwise Streamlit asks an outside server for this machine's address to judge requests of another origin.
net_util.get_external_ip = lambda: None


def choose(name: str, content: bytes) -> None:
    """Take a photo, or keep its error to be shown."""
    take(*open_photos([(name, lambda: content)]))


def take(photos: list[Photo], problems: list[str]) -> None:
    """Keep photos, and the errors of others."""
    st.session_state.photos, st.session_state.problems = photos, problems


def choose_example(name: str) -> None:
    """Take an example, and its prompt unless the user has written one."""
    every = examples()
    if st.session_state.prompts.strip() in {"", *(each.prompt for each in every.values())}:
        st.session_state.prompts = every[name].prompt
    choose(name, every[name].content)


def choose_uploads() -> None:
    """Take the files of the file dialogue; none if they were removed."""
    take(*open_photos([(file.name, file.getvalue) for file in st.session_state.upload]))


def choose_folder() -> None:
    """Take the photos of a folder inside the one that the web app was started with."""
    root, problem = root_folder(), None
    try:
        paths = find_folder(root, st.session_state.folder)
    except vlscore.VLScoreError as error:
        paths, problem = [], str(error)
    photos, problems = open_photos([(path.relative_to(root).as_posix(), path.read_bytes) for path in paths])
    take(photos, [problem, *problems] if problem else problems)


def show_chooser() -> None:
    """Show the gallery, the file dialogue and, if the web app was started with a folder, a field for one."""
    with st.container(horizontal=True, gap="small"):
        for name, example in examples().items():
            with st.container(width=104, gap="small"):
                st.image(example.thumbnail, width=104, alt=name)
                st.button(name, on_click=choose_example, args=(name,), width="stretch")
    st.file_uploader(
        f"Or your own photos: JPEG, PNG or WebP, {MEGABYTES} MB and {MEGAPIXELS} megapixels each at most."
        " They stay in this machine's memory.",
        type=["jpg", "jpeg", "png", "webp"],
        accept_multiple_files=True,
        key="upload",
        on_change=choose_uploads,
    )
    if root := root_folder():
        st.text_input(
            f"Or a folder below {plain(root.name)}", key="folder", placeholder=".", on_change=choose_folder
        )


def show_result(photo: Photo, options: Options, prompts: list[str]) -> None:
    """Show everything about the prompts: rows, scores, maps on request, downloads."""
    model = model_of(options.model)
    with locks().ask:
        texts = model.encode_text(prompts).cpu()  # report a bad prompt before the long part
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
    """Show a prompt and its answer and, if present, the photo with boxes and the heat map."""
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
    """Show the maps with the largest weights for an object that was found."""
    weights = vlscore.weights(encoding, text, temperature)
    small = photo.shown.copy()
    small.thumbnail((240, 240))
    best = weights.topk(min(6, int((weights > 0).sum())))
    with st.container(horizontal=True, gap="small"):
        for weight, index in zip(best.values.tolist(), best.indices.tolist()):
            picture = jpeg(with_heat(small, encoding.maps[index], encoding.input_size))
            st.image(picture, f"map {index}: {weight:.1%}", width=150, alt=f"map {index}")


def show_scores(found: list[vlscore.Localization], encoding: vlscore.Encoding, texts: torch.Tensor) -> None:
    """Chart each prompt's cosines with the best masked photo, the whole photo and an empty one."""
    rows = []
    for each, whole in zip(found, (texts @ encoding.image_embedding).tolist()):
        scores = {"best masked photo": each.score, "whole photo": whole, "empty image": each.base_score}
        rows += [{"words": each.prompt, "of": name, "score": score} for name, score in scores.items()]
    st.text("Scores: cosine of the words with the photo")
    st.altair_chart(score_chart(pd.DataFrame(rows)))


def score_chart(scores: pd.DataFrame) -> alt.LayerChart:
    """Chart bars in groups, with the words of each group on a line above it."""
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
    """Offer the downloads; the picture is drawn on request."""
    facts = json.dumps(vlscore.as_facts(photo.name, photo.size, encoding.model, found))
    files = {
        "Picture (PNG)": (lambda: picture_of(photo, encoding, found), "vlscore.png", "image/png"),
        "Boxes (JSON)": (facts, "vlscore.json", "application/json"),
        "Saliency (NumPy)": (saliency_file(found, encoding), "saliency.npy", "application/octet-stream"),
    }
    with st.container(horizontal=True):
        for name, (data, file, mime) in files.items():
            st.download_button(name, data, file, mime, on_click="ignore")


def describe(photos: list[Photo]) -> str:
    """Describe the chosen photos in a line."""
    if not photos:
        return "Choose a photo"
    (first, *others), size = photos, photos[0].size
    chosen = f"{len(photos)} photos" if others else f"{first.name}, {size[0]} × {size[1]} pixels"
    return f"{chosen} (open to choose others)"


def ask_words(photos: list[Photo], is_ready: bool) -> tuple[str, bool]:
    """Ask for the prompts -> them, and whether the button was pressed; show a single photo below."""
    hint = "an image of a dog.\nan image of a bicycle."
    text = st.text_area("What to look for, one thing per line", key="prompts", placeholder=hint)
    pressed = st.button("Find it!", type="primary", disabled=not (photos and is_ready))
    if len(photos) == 1:
        st.image(jpeg(photos[0].shown), width="stretch", alt="chosen photo")
    return text, pressed


def main() -> None:
    """Run the web app from top to bottom; Streamlit runs it again after every action."""
    st.set_page_config("VL-Score: ask CLIP where", layout="wide")
    for name, value in {"photos": [], "problems": [], "wanted": None, "prompts": ""}.items():
        st.session_state.setdefault(name, value)
    st.session_state.setdefault("recent", Recent())
    photos = st.session_state.photos
    st.header("VL-Score: ask CLIP where", anchor=False)
    with st.expander(plain(describe(photos)), expanded=not photos):  # else what was found is out of sight
        show_chooser()  # first, to be seen while the model loads
    with st.sidebar:
        options = choose_options()
    with st.container():  # keeps its place without a problem, or all below would be made anew
        for problem in st.session_state.problems:
            st.error(plain(problem))
    left, right = st.columns((1, 2))
    with left:
        text, pressed = ask_words(photos, options is not None)
    if not photos or options is None:
        return
    wanted = [options.key(photo) for photo in photos]
    if pressed:  # kept, since a slider that is moved meanwhile starts the page anew
        st.session_state.wanted = wanted
    is_known = len(photos) == 1 and st.session_state.recent.get(wanted[0]) is not None
    if st.session_state.wanted != wanted and not is_known:
        return
    with right:
        try:
            if len(photos) == 1:
                show_result(photos[0], options, prompts_of(text))
            else:
                show_many(photos, options, prompts_of(text))
        except vlscore.VLScoreError as error:
            st.error(plain(str(error)))


if __name__ == "__main__":
    main()
