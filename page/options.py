"""The sidebar: model and options."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

import vlscore
from page.kept import Options, model_of
from page.words import plain

KEEPS = (32, 64, 128, 256, 512, None)  # None is all maps, the exact method
TEMPERATURES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


def needs(name: str) -> str | None:
    """Say what a model needs that is not here; None if, by its name, it can be loaded."""
    family = vlscore.find_family(name)
    if family is None or family.is_here(name):
        return None
    file, home = family.weights(name), Path.home()
    folder = file.parent
    if folder.is_relative_to(home):
        folder = Path("~", folder.relative_to(home))
    return f"{file.name} in {folder}"


def choose_model() -> str:
    """List the models that the web app was started with, those that can be loaded, and what others need."""
    names = [name for family in vlscore.FAMILIES for name in family.models]
    names.sort(key=lambda each: needs(each) is not None)
    further = [name for name in os.environ.get("VLSCORE_MODELS", "").split(",") if name]
    names = list(dict.fromkeys([*further, *names]))
    return st.selectbox(
        "Model", names, format_func=lambda each: f"{each} (needs {needs(each)})" if needs(each) else each
    )


def choose_options() -> Options | None:
    """Show the sidebar; None if the model cannot be loaded."""
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
    help = "Fit boxes to whole objects, give each of several things a box, and say “not found” more strictly."
    refined = st.toggle("Refine boxes", key="refined", help=help)
    default = model.refined_threshold if refined else model.threshold
    help = "Boxes are cut where the heat map is above this share of its maximum."
    threshold = st.slider(
        "Threshold", 0.05, 0.95, default, 0.005, format="%.3f", key=f"α {name} {refined}", help=help
    )
    with st.expander("More options"):
        help = "Masked photos that are encoded; the others are predicted. All of them is the exact method."
        shown = {None: "all: exact"}
        keep = st.select_slider(
            "Maps to encode", KEEPS, 128, format_func=lambda each: shown.get(each, str(each)), help=help
        )
        help = "Low: the best few maps decide. High: all maps that beat an empty image share."
        steps = sorted({*TEMPERATURES, model.temperature})
        temperature = st.select_slider("Temperature", steps, model.temperature, key=f"τ {name}", help=help)
        source = choose_source(model, refined)
    return Options(name, source, keep, refined, temperature, round(threshold, 3))


def choose_source(model: vlscore.Model, refined: bool) -> dict:
    """Choose layer and kind of maps, as options of `vlscore.encode`."""
    fixed = model.is_vit and refined  # its maps are clusters of one layer's keys
    layer = st.selectbox("Layer", model.layers[::-1], key=f"layer {model.name}", disabled=fixed)
    kinds = vlscore.list_sources(model)
    kind = st.selectbox("Kind of maps", list(kinds), key=f"kind {model.name}", disabled=fixed)
    if fixed:
        return {}
    if refined:  # principal components are for plain maps
        kinds = {name: {"maps": each["maps"]} for name, each in kinds.items()}
    return {"layer": layer} | kinds[kind]
