"""Several photos at once: a gallery for each prompt, the surest first, and labels of all."""

from __future__ import annotations

import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import streamlit as st
import torch

import vlscore
from page.kept import Options, encoding_of, model_of
from page.photos import Photo, jpeg, locks, open_photo
from page.pictures import draw_boxes
from page.words import class_of, plain

COLUMNS = 4  # of the gallery
SHOWN = 24  # photos of a gallery at first
MOST_PHOTOS = 500


class Answer(NamedTuple):
    """The answer of one photo to one prompt.

    Attributes:
        p, sure: see `vlscore.judge_presence`.
        boxes: in pixels of the upright photo.
    """

    p: float
    sure: float
    boxes: list[vlscore.LabelledBox]


def root_folder() -> Path | None:
    """Return the folder that the web app was started with: ``app.py -- --root FOLDER``."""
    words = sys.argv[1:]
    return Path(words[words.index("--root") + 1]).resolve() if "--root" in words[:-1] else None


def find_folder(root: Path, place: str) -> list[Path]:
    """Find the photos of a folder below the root.

    Raises:
        vlscore.VLScoreError: it leads out of the root, has no photo, or too many.
    """
    folder = (root / place.strip()).resolve()
    if not folder.is_relative_to(root):
        raise vlscore.VLScoreError(f"{place} leads out of {root.name}: give a folder inside")
    paths = vlscore.find_photos(folder)
    if len(paths) > MOST_PHOTOS:
        raise vlscore.VLScoreError(
            f"{place} has {len(paths)} photos, {MOST_PHOTOS} at most are shown here: use `vlscore label`"
        )
    return paths


def open_photos(sources) -> tuple[list[Photo], list[str]]:
    """Open photos of (name, function that reads the content) -> those that can be used, and the errors."""
    photos, problems = [], []
    for name, read in sources:
        try:
            photos.append(open_photo(name, read()))
        except vlscore.VLScoreError as error:
            problems.append(f"{name}: {error}")
    return photos, problems


def answer_all(photos: list[Photo], options: Options, prompts: list[str]) -> list[list[Answer]]:
    """Answer each prompt for each photo; the session remembers earlier answers."""
    known, model = st.session_state.setdefault("answers", {}), model_of(options.model)
    with locks().ask:
        texts = dict(zip(prompts, model.encode_text(prompts).cpu()))
    bar, found = st.empty(), []
    for n, photo in enumerate(photos):
        key = (*options.key(photo), options.temperature, options.threshold)
        if any((*key, prompt) not in known for prompt in prompts):
            bar.progress(n / len(photos), f"Photo {n + 1} of {len(photos)}: {plain(photo.name)}")
            encoding = encoding_of(photo, options)
            with locks().ask:
                for prompt, answer in ask(model, encoding, texts, options).items():
                    known[*key, prompt] = answer
        found.append([known[*key, prompt] for prompt in prompts])
    bar.empty()
    return found


def ask(model, encoding: vlscore.Encoding, texts: dict[str, torch.Tensor], options: Options):
    """Answer each prompt from an encoding."""
    p, sure = vlscore.judge_presence(
        encoding, torch.stack(list(texts.values())), vlscore.embed_other_words(model)
    )
    boxes = vlscore.find_labels(model, encoding, texts, options.temperature, options.threshold)
    return {
        prompt: Answer(p[n].item(), sure[n].item(), [each for each in boxes if each.label == prompt])
        for n, prompt in enumerate(texts)
    }


def show_many(photos: list[Photo], options: Options, prompts: list[str]) -> None:
    """Show a gallery for each prompt in its own tab, and the downloads."""
    answers = answer_all(photos, options, prompts)
    for n, tab in enumerate(st.tabs([plain(prompt) for prompt in prompts])):
        with tab:
            show_gallery(photos, [row[n] for row in answers], key=str(n))
    show_downloads(photos, answers, prompts)


def show_gallery(photos: list[Photo], answers: list[Answer], key: str) -> None:
    """Show photos with their boxes, those first that most surely show the object."""
    order = sorted(range(len(photos)), key=lambda n: (answers[n].p, -answers[n].sure))
    found = sum(bool(each.boxes) for each in answers)
    st.text(f"Found in {found} of {len(photos)} photos; the surest first.")
    with_all = len(order) > SHOWN and st.toggle(f"Show all {len(order)} photos", key=f"all {key}")
    columns = st.columns(COLUMNS)
    for place, n in enumerate(order if with_all else order[:SHOWN]):
        photo, answer = photos[n], answers[n]
        state = f"{len(answer.boxes)} box{'es' * (len(answer.boxes) != 1)}" if answer.boxes else "not found"
        caption = f"{photo.name}: {state}, score {answer.sure:.2f}, p {answer.p:.2f}"
        picture = draw_boxes(photo, [each.box for each in answer.boxes])
        picture.thumbnail((400, 400))
        columns[place % COLUMNS].image(jpeg(picture), plain(caption), width="stretch", alt=photo.name)


def show_downloads(photos: list[Photo], answers: list[list[Answer]], prompts: list[str]) -> None:
    """Offer the boxes of all photos for download, in formats of `vlscore label`."""
    classes = [class_of(prompt) for prompt in prompts]
    labelled = [
        vlscore.LabelledPhoto(
            photo.name,
            photo.size,
            [each._replace(label=name) for name, answer in zip(classes, row) for each in answer.boxes],
        )
        for photo, row in zip(photos, answers)
    ]
    with st.container(horizontal=True):
        for form, name in (("coco", "COCO"), ("voc", "Pascal VOC"), ("yolo", "YOLO")):
            content = pack_labels(labelled, classes, form)
            st.download_button(
                f"Boxes ({name})", content, f"{form}.zip", "application/zip", on_click="ignore"
            )


def pack_labels(labelled: list[vlscore.LabelledPhoto], classes: list[str], form: str) -> bytes:
    """Pack the files of a format into a zip file."""
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in vlscore.format_labels(labelled, classes, form, Path(".")):
            archive.writestr(zipfile.ZipInfo(name), file)  # without the time, which would change the bytes
    return content.getvalue()
