"""The caches of the web app: models for all sessions, encodings for one."""

from __future__ import annotations

from collections import OrderedDict
from time import monotonic
from typing import NamedTuple

import streamlit as st
import torch

import vlscore
from page.photos import Photo, decode, locks

CACHE_BYTES = 64 * 2**20  # of a session's encodings


@st.cache_resource(max_entries=2, show_spinner="Loading the model …")
def model_of(name: str) -> vlscore.Model:
    """Load a model; the two used last are kept for all sessions."""
    model = vlscore.load_model(name)
    vlscore.fast_encoder(model)  # compiled while a photo is still being chosen
    return model


def size_in_bytes(encoding: vlscore.Encoding) -> int:
    """Compute the bytes that the tensors of an encoding take in memory."""
    every = [*vars(encoding).values(), *(each for scale in encoding.scales for each in scale)]
    return sum(each.nbytes for each in every if isinstance(each, torch.Tensor))


class Recent:
    """Encodings by key; if they take more than ``limit`` bytes, the least recently used are dropped.

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
    """The choices in the sidebar; ``source`` has the options of `vlscore.encode` that choose the maps."""

    model: str
    source: dict
    keep: int | None
    refined: bool
    temperature: float
    threshold: float

    def key(self, photo: Photo) -> tuple:
        """Everything that an encoding depends on."""
        return photo.digest, self.model, *sorted(self.source.items()), self.keep, self.refined


def encoding_of(photo: Photo, options: Options) -> vlscore.Encoding:
    """Return the session's encoding of a photo, or make it."""
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
    """Yield the batches, and show how many are done and the time left."""
    begun = monotonic()
    for done, batch in enumerate(batches):
        left = f", {(monotonic() - begun) / done * (len(batches) - done):.0f} s left" if done else ""
        bar.progress(done / len(batches), f"Encoding masked photos: {done} of {len(batches)} batches{left}")
        yield batch
