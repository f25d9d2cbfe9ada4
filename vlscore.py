"""VL-Score: ask a CLIP-like model *where* an object is.

A CLIP-like model embeds images and texts in one space and is trained without boxes.  VL-Score masks the image
with each of the encoder's own activation maps, scores every masked image against a prompt, keeps the maps
that score above an empty image, sums them into a saliency map, and cuts boxes from that map::

    text  ─encode_text─────────────────────────────────┐
    image ─load─> pixels ─feature_maps─> maps ─masks─> embeddings ─scores─> weights ─> saliency ─> boxes
                  └─── Encoding: prompt-free, once per image ───┘  └─ any prompt, τ, α: milliseconds ─┘

Notation, the same in all files::

    X    (3, S, S)   pixels of an image as the encoder takes them: fitted to S×S, normalised
    A    (C, h, w)   activation maps of one layer; A_k is one of them
    M    (C, S, S)   masks in [0, 1]: the maps upsampled to the input, each min-max normalised
    e    (C, D)      mask embeddings: unit embeddings of the masked images X ⊙ M_k
    s    (C,)        scores: the cosine of each mask embedding with the text embedding
    s_b  ()          base score: the cosine of the empty image X_b with the text embedding
    τ, α             temperature of the softmax over the scores; CAM threshold of the boxes
    B images, C maps, h×w cells, D dimensions of the joint space, N prompts, F features
    boxes            (x0, y0, x1, y1) in pixels of the original image, half-open

The building blocks are in `vlscore_lib`, one concern in each file.  This module exports their public names.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch

from vlscore_lib.boxes import boxes_above, warmth
from vlscore_lib.datasets.reading import Dataset
from vlscore_lib.datasets.voc import AnnotatedPhoto
from vlscore_lib.encoding import PRESENT, Encoding, Localization, Scale
from vlscore_lib.errors import VLScoreError, check_temperature, check_threshold, import_extra
from vlscore_lib.evaluation.baselines import baseline_maps
from vlscore_lib.evaluation.metrics import SHARES, best_ious, box_iou, constant_box
from vlscore_lib.evaluation.protocol import Protocol, method_name
from vlscore_lib.evaluation.runs import Run
from vlscore_lib.evaluation.workers import EvaluationContext, measure_by_dask, measure_here, read_shard_images
from vlscore_lib.images import fit_region, load_image, read_content
from vlscore_lib.labelling.labels import LabelledBox, LabelledPhoto, check_classes
from vlscore_lib.masks import embed_masked, heat_map
from vlscore_lib.models.base import Model, unit
from vlscore_lib.models.class_texts import class_embedding, class_embeddings, embed_other_words
from vlscore_lib.models.fast_encoder import choose_batch_size, choose_precision, fast_encoder
from vlscore_lib.models.registry import absolute_name, load_model
from vlscore_lib.options import EncodingOptions
from vlscore_lib.prompts import TEMPLATE, prompt_templates
from vlscore_lib.refinement import (
    Sharpening,
    diffuse,
    discriminate,
    locate_seed,
    min_max,
    sharpen,
    split_instances,
    upsample,
    weighted_sum,
)
from vlscore_lib.selection import predict_embeddings, select_for_images, select_maps
from vlscore_lib.sources import read_scales, read_sources
from vlscore_lib.store import EncodingStore, Rows
from vlscore_lib.widgets import build_playground

# ── Encoding: all that is slow, and nothing that depends on the text ─────────────────────────────


def encode(model: Model, image, *values, progress=iter, **options) -> Encoding:
    """Encode an image: embed it under the mask of each of its maps.

    This is the slow half of VL-Score and needs no prompt.  Run it once for each image: `localize` then
    answers any prompt in milliseconds.  On one machine, the same input gives bit-identical output.

    Args:
        model: from `load_model`.
        image: a path or a PIL image.
        values: the fields of `EncodingOptions` one by one, in their order, not the object itself.
        options: the fields of `EncodingOptions` as keyword arguments, such as ``refined=True``.
        progress: a function that wraps the list of batches, such as `tqdm.tqdm`.

    Raises:
        VLScoreError: the image cannot be read, the layer is unknown, or an option is out of range.
    """
    return encode_images(model, [image], EncodingOptions(*values, **options), progress)[0]


def encode_images(model: Model, images: list, options: EncodingOptions, progress=iter) -> list[Encoding]:
    """Encode several images in shared batches, which keeps a GPU busy: an `Encoding` for each.

    Args:
        model: from `load_model`.
        images: paths or PIL images.
        options: how to encode them, the same for all.
        progress: a function that wraps the list of batches, such as `tqdm.tqdm`.
    """
    options.check()
    batch_size = options.batch_size or choose_batch_size(model)
    encoder = fast_encoder(model, options.precision)
    images = [load_image(image) for image in images]
    pixels = torch.stack([model.preprocess(image, options.fit) for image in images])
    if model.device.type == "cuda":
        pixels = pixels.pin_memory()  # otherwise the CPU would wait for the copy
    pixels = pixels.to(model.device, non_blocking=True)
    sources = read_sources(model, images, pixels, options)
    maps = torch.stack([source.maps for source in sources])  # (N, C, h, w)
    plain = torch.cat([pixels, torch.zeros_like(pixels[:1])])  # the images and the empty one
    *image_embeddings, base = torch.cat([encoder(each) for each in plain.split(batch_size)])
    indices = select_for_images(maps, options.keep)
    embeddings = embed_masked(encoder, pixels, maps, indices, base, batch_size, progress)  # (N, C, D)
    if not torch.cat([base, *image_embeddings, embeddings.flatten()]).isfinite().all():
        if choose_precision(options.precision, model.device) == "float32":
            raise VLScoreError(f"{model.name} gives embeddings that are not finite: check its weights")
        return encode_images(model, images, replace(options, precision="float32"), progress)
    return [
        Encoding(
            model=model.name,
            layer=source.layer,
            kind=source.kind,
            input_size=model.input_size,
            fit=fit_region(image.size, options.fit),
            maps=maps[n].cpu(),
            indices=indices[n],
            mask_embeddings=predict_embeddings(maps[n], indices[n], embeddings[n]).cpu(),
            base_embedding=base.cpu(),
            image_embedding=image_embeddings[n].cpu(),
            temperature=model.temperature,
            threshold=model.refined_threshold if options.refined else model.threshold,
            prominence=model.prominence,
            family=model.family,
            refined=options.refined,
            scales=source.scales,
            features=source.features,
        )
        for n, (image, source) in enumerate(zip(images, sources))
    ]


# ── Scores, weights, saliency ────────────────────────────────────────────────────────────────────


def scores(encoding: Encoding, text_embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compare a text with each masked image and the empty one: s (C,) and s_b (), cosines in [-1, 1].

    Args:
        encoding: the encoded image.  Maps with predicted embeddings have scores, too.
        text_embedding: (D,), of any norm, a row of what `Model.encode_text` returns.
    """
    text = unit(text_embedding.cpu())
    # Row by row in the same order, so that equal embeddings have equal scores.
    every = (torch.cat([encoding.mask_embeddings, encoding.base_embedding[None]]) * text).sum(-1)
    return every[:-1], every[-1]


def best_score(encoding: Encoding, text_embedding: torch.Tensor) -> tuple[float, float]:
    """Return the highest score of a map, or of the whole image if there are no masks, and the base score."""
    s, base = scores(encoding, text_embedding)
    best = s.max() if encoding.has_masks else encoding.image_embedding @ unit(text_embedding.cpu())
    return best.item(), base.item()


def weights(encoding: Encoding, text_embedding: torch.Tensor, temperature: float = 1.0):
    r"""Compute the weight of each map, by how well its masked image fits a text.

    .. math:: w_k = \frac{e^{s_k/\tau}}{\sum_{s_j > s_b} e^{s_j/\tau}} \text{ if } s_k > s_b, \text{ else } 0

    Args:
        encoding: the encoded image.
        text_embedding: (D,), of any norm, as from `Model.encode_text`.
        temperature: τ > 0; 1, as in the released code, by default; `localize` takes ``encoding.temperature``.

    Returns:
        (C,), with sum 1, on the CPU; None if no map scores above the base score.
    """
    check_temperature(temperature)
    s, base = scores(encoding, text_embedding)
    beats = s > base
    if not beats.any():
        return None
    # In float64, relative to the best, since s / τ overflows float32 when τ is tiny.
    logits = (s - s[beats].max()).double() / temperature
    return logits.masked_fill(~beats, -torch.inf).softmax(0).float()


def saliency(encoding: Encoding, text_embedding: torch.Tensor, temperature: float = 1.0):
    r"""Sum the weighted maps of a text into its saliency map.

    It is :math:`\mathrm{relu}(\sum_k w_k A_k)`, with the `weights` :math:`w` and the raw maps :math:`A`.

    Args:
        encoding: the encoded image.
        text_embedding: (D,), of any norm, as from `Model.encode_text`.
        temperature: τ > 0, 1 by default, see `weights`; `localize` takes ``encoding.temperature``.

    Returns:
        (h, w), 0 or more; if refined, (S, S) in [0, 1], see `refine`.  None if no map beats the base score.
    """
    w = weights(encoding, text_embedding, temperature)
    if encoding.refined and (w is not None or not encoding.has_masks):
        return refine(encoding, w, text_embedding)
    return None if w is None else torch.einsum("k,khw->hw", w, encoding.maps).relu()


# ── Presence: does the image show it at all? ─────────────────────────────────────────────────────


def p_absent(encoding: Encoding, text_embedding: torch.Tensor, others: torch.Tensor) -> float:
    """Rank a text among others by how well they fit an image: p in (0, 1], small if the image shows it.

    A text's fit is its highest score, of the maps that went through the encoder, if any, plus its cosine with
    the whole image.  If m of N other texts fit better, :math:`p = (1 + m) / (1 + N)` (Phipson and Smyth
    2010).  For an absent thing, p ≤ 0.05 in at most 5 % of the images, on average over texts like the others.

    Args:
        encoding: the encoded image.
        text_embedding: (D,), of any norm, as from `Model.encode_text`.
        others: (N, D), embeddings of the other texts, see `embed_other_words`; an equal text does not count.
    """
    return judge_presence(encoding, text_embedding[None], others)[0][0].item()


def judge_presence(encoding: Encoding | Rows, texts: torch.Tensor, others: torch.Tensor):
    """Judge for several texts at once whether an image shows what they name.

    Args:
        encoding: the encoded image, or its ``Rows``, see "Encodings on disk" in the API reference.
        texts: (M, D), embeddings of the texts to judge.
        others: (N, D), embeddings of the texts to compare with, see `embed_other_words`.

    Returns:
        `p_absent` of each text, (M,), and the model's confidence, (M,) in [0, 1].  It is Φ(z) if the text's
        fit lies z standard deviations above the others' mean; Φ is the normal distribution function.
    """
    every = unit(torch.cat([texts, others]).cpu())  # (M + N, D)
    rows = encoding if isinstance(encoding, Rows) else Rows.of(encoding)
    fits = rows.image_embedding @ every.T
    if len(rows.mask_embeddings):
        fits = fits + (rows.mask_embeddings @ every.T).amax(0)
    fits, of_others = fits[: len(texts), None], fits[len(texts) :]
    same = 1e-6  # rounding must not put a text above itself
    p = (1 + (of_others > fits + same).sum(1)).double() / (1 + len(others))
    far = (fits[:, 0] - of_others.mean()) / of_others.std()
    return p, torch.special.ndtr(far)


# ── Refinement: the extent of an object, from a larger copy of the image and a finer layer ───────


def refine(encoding: Encoding, w: torch.Tensor | None, text_embedding: torch.Tensor) -> torch.Tensor:
    """Sum the weighted maps into a saliency map (S, S) in [0, 1] that follows the extent of the object.

    For a CNN, `locate_seed` estimates which cells belong to the object, and `sharpen` fits this to a finer
    layer.  For a ViT, each region's weight is spread over its area, then over similar cells (`diffuse`).

    Args:
        encoding: made with ``refined=True``.
        w: (C,), see `weights`; None if the encoding has no masks (``keep=0``).
        text_embedding: (D,), of any norm, as from `Model.encode_text`.
    """
    scales, features = encoding.scales, encoding.features
    if encoding.family == "vit":
        regions = scales[0].maps
        found = diffuse(weighted_sum(w, regions / regions.sum((1, 2), keepdim=True)), features)
    else:
        found = sharpen(locate_seed(scales, w, text_embedding, features.shape[1:]), features)
    return min_max(upsample(found, encoding.input_size))


# ── Boxes ────────────────────────────────────────────────────────────────────────────────────────


def find_boxes(
    saliency: torch.Tensor | None, encoding: Encoding, threshold: float | None = None, min_area: float = 0.001
) -> list[tuple[int, int, int, int]]:
    """Cut boxes around the components of a saliency map above the CAM threshold.

    Args:
        saliency: (h, w), a float tensor on the CPU; None gives no boxes, nor does a constant map.
        encoding: the encoded image.
        threshold: α in (0, 1); pixels above α in the scaled map count; None means ``encoding.threshold``.
        min_area: a share of the photo's area, in [0, 1); smaller components (if refined, parts) are dropped.

    Returns:
        A box (x0, y0, x1, y1) around each 4-connected component or, if refined, each peak in it (see
        `split_instances`), the largest area first, in whole pixels of the original image, half-open.

    Raises:
        VLScoreError: the threshold is out of range.
    """
    return sweep_boxes(saliency, encoding, [threshold], min_area)[0]


def sweep_boxes(saliency, encoding: Encoding, thresholds, min_area: float = 0.001) -> list[list[tuple]]:
    """Cut boxes at several CAM thresholds, upsampling the map only once: a list of boxes for each.

    Args:
        saliency, encoding, min_area: see `find_boxes`.
        thresholds: values of α in (0, 1); None among them means ``encoding.threshold``.
    """
    alphas = [encoding.threshold if each is None else each for each in thresholds]
    for alpha in alphas:
        check_threshold(alpha)
    if saliency is None:
        return [[] for _ in alphas]
    heat = heat_map(saliency, encoding.input_size).numpy()
    instances = split_instances(heat, encoding.prominence) if encoding.refined else None
    return boxes_above(heat, [a * heat.max() for a in alphas], encoding.fit, min_area, instances)


# ── Localization: all of it, for one image and one prompt ────────────────────────────────────────


def localize(
    model: Model,
    image,
    prompt: str,
    temperature: float | None = None,
    threshold: float | None = None,
    assume_present: bool = False,
    **options,
) -> Localization:
    """Find where an image shows what a prompt names.

    Args:
        model: from `load_model`.
        image: a path, a PIL image, or an `Encoding` that this model made, which is not checked.
        prompt: such as ``"an image of a cat."``
        temperature: τ > 0; None means the model's own, ``encoding.temperature``.
        threshold: α in (0, 1); None means the model's own, ``encoding.threshold``.
        assume_present: whether to localize it also where `p_absent` is above `PRESENT`, as evaluations do.
        options: fields of `EncodingOptions` such as ``keep``; without effect if ``image`` is an `Encoding`.

    Raises:
        VLScoreError: the image cannot be read, the prompt cannot be embedded, or an option is out of range.
    """
    text = model.encode_text([prompt])[0]
    encoding = image if isinstance(image, Encoding) else encode(model, image, **options)
    found = saliency(encoding, text, encoding.temperature if temperature is None else temperature)
    score, base_score = best_score(encoding, text)
    p = p_absent(encoding, text, embed_other_words(model)) if encoding.refined else None
    if p is not None and p > PRESENT and not assume_present:
        found = None
    return Localization(
        prompt=prompt,
        present=found is not None,
        boxes=find_boxes(found, encoding, threshold),
        saliency=found,
        score=score,
        base_score=base_score,
        p_absent=p,
    )


# ── Labels: every class in many photos ───────────────────────────────────────────────────────────


class Labeller:
    """Find the objects of several classes in photos, one photo at a time.

    Call a labeller with a photo's path to get its `LabelledPhoto`, with this path as its ``place``.  A class
    whose `p_absent` is above `PRESENT` is left out, unless ``assume_present``.  A box's score, in [0, 1], is
    the model's confidence in the class, see `judge_presence`, times the heat map's peak in the box.

    Args:
        model: from `load_model`.
        classes: names of classes; or a dict from class to its names, whose embeddings are averaged.
        templates: a tuple of prompts with ``{}`` where the name goes, see `prompt_templates`.
        encodings: a folder that keeps each photo's encoding for later calls; None keeps none.
        encodings_limit: the largest size of that folder in GB, see `EncodingStore`; None sets no limit.
        temperature, threshold: τ > 0 and α in (0, 1); None means the model's own.
        min_score: in [0, 1]; boxes with a lower score are left out.
        assume_present: whether every photo shows every class.
        options: the fields of `EncodingOptions`; but ``refined`` is True by default.

    Raises:
        VLScoreError: a class is named twice, an option is out of range, or a photo cannot be read.
    """

    def __init__(
        self,
        model: Model,
        classes,
        templates=(TEMPLATE,),
        encodings=None,
        encodings_limit: float | None = None,
        temperature: float | None = None,
        threshold: float | None = None,
        min_score: float = 0.0,
        assume_present: bool = False,
        **options,
    ):
        self.model, self.options = model, EncodingOptions(**{"refined": True} | options)
        self.options.check()
        self.temperature, self.threshold, self.min_score = temperature, threshold, min_score
        self.assume_present = assume_present
        self.store = encodings and EncodingStore(encodings, model, self.options, encodings_limit)
        names = check_classes(classes)
        self.texts = dict(zip(names, class_embeddings(model, names.values(), templates)))

    def __call__(self, path) -> LabelledPhoto:
        """Label a photo, from its stored encoding if there is one."""
        found = self.label_stored(path)
        return found or self.describe(path, self.encode(path))

    def encode(self, path) -> Encoding:
        """Encode a photo, or read its encoding from the folder that keeps them."""
        return read_encoding(self.model, path, self.options, self.store)

    def label_stored(self, path) -> LabelledPhoto | None:
        """Label a photo whose encoding is stored, or return None.  Several threads may call this at once."""
        content = read_content(path)
        rows = self.store.read_rows(content) if self.store else None
        if rows is None:
            return None
        if not self.assume_present and (self.judge_rows(rows)[0] > PRESENT).all():  # needs no maps
            return LabelledPhoto(str(path), rows.size, [])
        encoding = self.store.read(content)
        return encoding and self.describe(path, encoding)

    def describe(self, path, encoding: Encoding) -> LabelledPhoto:
        """Find the boxes of all classes in the encoding of the photo at a path."""
        asked = self.texts, self.temperature, self.threshold, self.assume_present
        found = find_labels(self.model, encoding, *asked)
        boxes = [each for each in found if each.score >= self.min_score]
        return LabelledPhoto(str(path), encoding.fit.size, boxes)

    def judge(self, path) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge whether a photo shows each of n classes: p (n,) and confidence (n,) of `judge_presence`."""
        rows = self.store.read_rows(read_content(path)) if self.store else None
        if rows is None:
            rows = Rows.of(self.encode(path))
        return self.judge_rows(rows)

    def judge_rows(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge whether a photo shows each class, from the embeddings in its stored encoding."""
        return judge_presence(rows, torch.stack(list(self.texts.values())), embed_other_words(self.model))


def find_labels(
    model: Model,
    encoding: Encoding,
    texts: dict[str, torch.Tensor],
    temperature: float | None = None,
    threshold: float | None = None,
    assume_present: bool = False,
) -> list[LabelledBox]:
    """Find the boxes of several classes in an encoded image, refined or plain.

    Args:
        model: the model that made the encoding.
        encoding: the encoded image.
        texts: a dict from class to its embedding (D,), see `class_embedding`.
        temperature, threshold: τ > 0 and α in (0, 1); None means the encoding's.
        assume_present: whether the image shows every class, see `localize`.
    """
    p, sure = judge_presence(encoding, torch.stack(list(texts.values())), embed_other_words(model))
    tau = encoding.temperature if temperature is None else temperature
    found = []
    for n, (name, text) in enumerate(texts.items()):
        heat = saliency(encoding, text, tau) if assume_present or p[n] <= PRESENT else None
        for box in find_boxes(heat, encoding, threshold):
            score = sure[n].item() * warmth(heat, box, encoding)
            found.append(LabelledBox(name, round(score, 6), box))
    return found


def label(model: Model, paths, classes, **options):
    """Label photos one after the other: an iterator over a `LabelledPhoto` for each path.

    Args:
        model: from `load_model`.
        paths: the photos' paths, such as `find_photos` returns.
        classes: see `Labeller`.
        options: further arguments of `Labeller`.  Before you write labels, set each ``place``, see there.
    """
    return map(Labeller(model, classes, **options), paths)


def read_encoding(model: Model, path, options: EncodingOptions, store: EncodingStore | None) -> Encoding:
    """Read a photo's encoding from a store, or encode the photo and store the encoding.

    Args:
        model: from `load_model`.
        path: the photo's path.
        options: how to encode it.
        store: an `EncodingStore` made with this model and these options, unchecked; None stores nothing.
    """
    if store is None:
        return encode_images(model, [path], options)[0]
    content = read_content(path)
    return store.read(content) or store.write(content, encode_images(model, [path], options)[0])


# ── Evaluation: every image measured once, all thresholds and temperatures read off one Encoding ─


def evaluate(
    model: Model,
    dataset: Dataset,
    out=None,
    resume: bool = False,
    client=None,
    progress=lambda count, measured=True: None,
    **options,
):
    """Measure a model on a data set: a pandas DataFrame of records, one row for each photo and class.

    Args:
        model: from `load_model`.
        dataset: from `read_dataset`.
        out: a folder for ``part-*.parquet``, ``run.json`` and ``summary.json``; None writes nothing.
        resume: continue the run in ``out``; its finished shards are not measured again.
        client: a `dask.distributed.Client`, whose workers each load the model once; None measures here.
        progress: called after each shard with its number of photos; ``measured=False`` if read from ``out``.
        options: the fields of `Protocol`.

    Raises:
        VLScoreError: a bad option, another run in the folder, an unreadable photo or a missing package.
    """
    pandas = import_extra("pandas", "evaluation")
    import_extra("pyarrow", "evaluation")  # report a missing package before hours of work
    import_extra("pytorch_grad_cam", "evaluation")
    protocol = Protocol(**options).resolve(model)
    if protocol.average_precision is None:
        protocol = replace(protocol, average_precision=dataset.is_own)
    run = Run(model, dataset, protocol, out)
    done = run.start(resume)
    progress(sum(map(len, done.values())), measured=False)
    todo = {number: shard for number, shard in enumerate(run.shards) if number not in done}
    if todo:
        templates = prompt_templates(protocol.templates)
        texts = class_embeddings(model, dataset.classes.values(), templates)
        skips_bad = dataset.skips_bad
        context = EvaluationContext(model.name, protocol, list(dataset.classes), texts, skips_bad)
        if client is None:
            observe, record = (partial(each, model, context) for each in (observe_shard, record_photo))
            measured = measure_here(observe, record, todo, skips_bad)
        else:
            measured = measure_by_dask(client, measure_on_worker, context, todo)
        for number, records, left_out in measured:
            done[number] = run.keep(number, pandas.DataFrame(records), left_out)
            progress(len(records) + len(left_out))
    parts = [done[number] for number in sorted(done) if len(done[number])]
    if not parts:
        raise VLScoreError(f"no photo could be measured: {run.list_left_out()[0]}")
    records = pandas.concat(parts, ignore_index=True)
    run.finish(records)
    return records


def measure_shard(model: Model, context: EvaluationContext, shard, images) -> list[dict]:
    """Measure the photos of a shard, a part of a data set, in shared batches: a record for each photo.

    Args:
        model: from `load_model`.
        context: the protocol, the classes and their embeddings.
        shard: one of the ``shards`` of a `Run`.
        images: the PIL image of each photo.
    """
    return [record_photo(model, context, each) for each in observe_shard(model, context, shard, images)]


class Observation(NamedTuple):
    """What the model computes for a photo: its encoding, and the baselines' saliency maps of its class."""

    photo: AnnotatedPhoto
    encoding: Encoding
    baselines: dict[str, torch.Tensor]


def observe_shard(model: Model, context: EvaluationContext, shard, images) -> list[Observation]:
    """Run the model on the photos of a shard."""
    if not shard:
        return []
    # A photo of several classes is listed once for each, but encoded once.
    different = {photo.path: image for (photo, _), image in zip(shard, images)}
    encodings = dict(zip(different, encode_images(model, list(different.values()), context.protocol)))
    return [
        observe(model, photo, with_slow, different[photo.path], encodings[photo.path], context)
        for photo, with_slow in shard
    ]


def measure_on_worker(context: EvaluationContext, shard) -> tuple[list[dict], dict[str, str]]:
    """Measure a shard on a Dask worker -> its records, and the photos that were left out."""
    read = read_shard_images(shard, context.skips_bad)
    model = load_worker_model(context.model)
    return measure_shard(model, context, read.photos, read.images), read.left_out


@lru_cache(1)
def load_worker_model(name: str) -> Model:
    """Load the model of a worker process, once for all its shards."""
    return load_model(name)


def measure(
    model: Model,
    photo: AnnotatedPhoto,
    with_slow_baselines: bool,
    image,
    encoding: Encoding,
    context: EvaluationContext,
) -> dict:
    """Measure one photo, and return its record: a dict of boxes, scores and IoUs.

    Args:
        model: from `load_model`.
        photo: with its ground truth.
        with_slow_baselines: whether to run Score-CAM and gScoreCAM as well.
        image: the photo's PIL image.
        encoding: the encoded photo.
        context: the protocol, the classes and their embeddings.
    """
    return record_photo(model, context, observe(model, photo, with_slow_baselines, image, encoding, context))


def observe(
    model: Model,
    photo: AnnotatedPhoto,
    with_slow_baselines: bool,
    image,
    encoding: Encoding,
    context: EvaluationContext,
) -> Observation:
    """Run the baselines on a photo, for its class."""
    text, plain = context.texts[context.labels.index(photo.label)], encoding.without_refinement()
    baselines = baseline_maps(model, image, plain, context.protocol.fit, text, with_slow_baselines)
    embed_other_words(model)  # once, before several threads ask for them
    return Observation(photo, encoding, baselines)


def record_photo(model: Model, context: EvaluationContext, observed: Observation) -> dict:
    """Make the record of a photo, see `measure`, without running the model."""
    (photo, encoding, baselines), (W, H) = observed, observed.encoding.fit.size
    protocol, labels = context.protocol, context.labels
    text = context.texts[labels.index(photo.label)]
    likeliest = (context.texts @ encoding.image_embedding).topk(min(5, len(labels))).indices
    score, base_score = best_score(encoding, text)
    constant = [constant_box(share, (W, H)) for share in SHARES]
    record = {
        "image": photo.name,
        "label": photo.label,
        "width": W,
        "height": H,
        "objects": len(photo.boxes),
        "top5": [labels[n] for n in likeliest],
        "score": score,
        "base_score": base_score,
        "p_absent": p_absent(encoding, text, embed_other_words(model)),
        **score_absent_class(encoding, photo, context, model),
        "constant": best_ious(constant, photo.boxes).tolist(),
    }
    plain, heats = encoding.without_refinement(), {}
    if protocol.refined:
        heats[protocol.method] = saliency(encoding, text, protocol.temperature)
    if encoding.has_layer_maps and encoding.has_masks:
        heats |= {method_name(tau): saliency(plain, text, tau) for tau in protocol.temperatures}
    for method, heat in (heats | baselines).items():
        is_refined = protocol.refined and method == protocol.method
        found = sweep_boxes(heat, encoding if is_refined else plain, protocol.thresholds)
        ends = np.cumsum([len(boxes) for boxes in found])
        overlaps = np.split(best_ious([*chain(*found)], photo.boxes), ends[:-1])  # of each threshold
        record[f"iou: {method}"] = [float(each.max(initial=0.0)) for each in overlaps]
        record[f"largest: {method}"] = [float(each[:1].max(initial=0.0)) for each in overlaps]
        record[f"boxes: {method}"] = [len(boxes) for boxes in found]
    if protocol.average_precision:
        texts = dict(zip(labels, context.texts))
        found = find_labels(model, encoding, texts, protocol.temperature, protocol.threshold)
        record |= {
            "photo": photo.name.removesuffix(f" ({photo.label})"),
            "found": [each._asdict() for each in found],
            "truth": [{"label": label, "box": box} for label, box in photo.objects],
        }
    return record


def score_absent_class(
    encoding: Encoding, photo: AnnotatedPhoto, context: EvaluationContext, model: Model
) -> dict:
    """Score a class that the photo does not show, drawn at random by the photo's name and the seed."""
    shown = {label for label, _ in photo.objects}
    others = [label for label in context.labels if label not in shown]
    keys = ("absent_score", "absent_base_score", "absent_p")
    if not others:
        return {"absent_label": ""} | dict.fromkeys(keys, float("nan"))
    rng = np.random.default_rng([context.protocol.seed, crc32(photo.name.encode())])
    label = others[rng.integers(len(others))]
    text = context.texts[context.labels.index(label)]
    found = *best_score(encoding, text), p_absent(encoding, text, embed_other_words(model))
    return {"absent_label": label} | dict(zip(keys, found))


# ── Playground ───────────────────────────────────────────────────────────────────────────────────


def playground(model: Model, image=None, prompt: str = TEMPLATE.format("cat"), keep: int | None = 128):
    """Build an ipywidgets box to try VL-Score by hand: controls for photo, prompt, layer, maps, τ and α.

    Args:
        model: from `load_model`.
        image: a path or a PIL image to start with; None waits for an upload.
        prompt: the prompt to start with.
        keep: how many maps go through the encoder, here 128 by default; None means all, see `select_maps`.
    """
    return build_playground(model, partial(encode, model, keep=keep), partial(localize, model), image, prompt)


# ── Public names: those above, and those of the rooms below that are handed on ───────────────────

from vlscore_lib import __version__, scenes
from vlscore_lib.boxes import find_box_at, find_peak, mass_in_boxes
from vlscore_lib.datasets.imagenet import read_classes
from vlscore_lib.datasets.layouts import LAYOUTS, find_layout
from vlscore_lib.datasets.reading import read_dataset
from vlscore_lib.datasets.voc import hand_boxed_photos, read_voc
from vlscore_lib.encoding import as_facts, as_text
from vlscore_lib.evaluation.baselines import CosineScorer, compute_cam, compute_gscorecam, mean_map
from vlscore_lib.evaluation.detection import average_precision
from vlscore_lib.evaluation.metrics import (
    auroc,
    interval,
    max_box_acc,
    max_box_acc_v2,
    paired_difference,
    resample,
    rounded,
    share_with_interval,
    two_sided,
    wilson,
)
from vlscore_lib.evaluation.model_table import measure_models, tabulate_models
from vlscore_lib.evaluation.runs import read_run, read_shard
from vlscore_lib.evaluation.summaries import compare, summarize
from vlscore_lib.evaluation.tables import show_table, summary_table, tabulate_figures, tabulate_summary
from vlscore_lib.figures import (
    BOX_COLOUR,
    COLOUR_MAP,
    draw_case_study,
    draw_contact_sheet,
    draw_localizations,
    draw_overlay,
    render_jpeg,
    show_boxes,
    show_heat,
    show_legend,
)
from vlscore_lib.files import read_json, write_whole
from vlscore_lib.images import Fit
from vlscore_lib.labelling.formats import FORMATS as LABEL_FORMATS, format_labels, write_labels
from vlscore_lib.labelling.labels import Journal
from vlscore_lib.masks import make_masks, varies
from vlscore_lib.models.base import list_sources, principal_maps, tapped
from vlscore_lib.models.checkpoints import build_clip, load_checkpoint, load_scenes
from vlscore_lib.models.facts import CLIP_NAMES, OFFLINE_MODEL, SCENES_MODELS, clip_file, scenes_file
from vlscore_lib.models.listing import list_models
from vlscore_lib.models.openai_clip import CLIP_MEAN, CLIP_STD, ClipModel, import_clip
from vlscore_lib.models.registry import FAMILIES, find_family
from vlscore_lib.options import FITS, MAPS, PRECISIONS
from vlscore_lib.photos import find_photos
from vlscore_lib.prompts import imagenet_classes, imagenet_label
from vlscore_lib.refinement import cluster_maps, combine_evidence, gather_evidence, weigh_evidence
from vlscore_lib.selection import mask_cells, mask_similarity
from vlscore_lib.widgets import make_picture_slider

# fmt: off
__all__ = [
    "BOX_COLOUR", "CLIP_MEAN", "CLIP_NAMES", "CLIP_STD", "COLOUR_MAP", "FAMILIES", "FITS", "LABEL_FORMATS",
    "LAYOUTS", "MAPS", "OFFLINE_MODEL", "PRECISIONS", "PRESENT", "SCENES_MODELS", "SHARES", "TEMPLATE",
    "AnnotatedPhoto", "ClipModel", "CosineScorer", "Dataset", "Encoding", "EncodingOptions",
    "EncodingStore", "Fit", "Journal", "LabelledBox", "LabelledPhoto", "Labeller", "Localization", "Model",
    "Protocol", "Run", "Scale", "Sharpening", "VLScoreError", "__version__", "absolute_name", "as_facts",
    "as_text", "auroc", "average_precision", "box_iou", "build_clip", "check_classes", "choose_batch_size",
    "choose_precision", "class_embedding", "class_embeddings", "clip_file", "cluster_maps",
    "combine_evidence", "compare", "compute_cam", "compute_gscorecam", "constant_box", "diffuse",
    "discriminate", "draw_case_study", "draw_contact_sheet", "draw_localizations", "draw_overlay",
    "embed_other_words", "encode", "encode_images", "evaluate", "fast_encoder", "find_box_at", "find_boxes",
    "find_family", "find_labels", "find_layout", "find_peak", "find_photos", "fit_region", "format_labels",
    "gather_evidence", "hand_boxed_photos", "heat_map", "imagenet_classes", "imagenet_label", "import_clip",
    "interval", "judge_presence", "label", "list_models", "list_sources", "load_checkpoint", "load_image",
    "load_model", "load_scenes", "localize", "locate_seed", "make_masks", "make_picture_slider", "mask_cells",
    "mask_similarity", "mass_in_boxes", "max_box_acc", "max_box_acc_v2", "mean_map", "measure",
    "measure_models", "measure_shard", "method_name", "p_absent", "paired_difference", "playground",
    "predict_embeddings", "principal_maps", "prompt_templates", "read_classes", "read_content",
    "read_dataset", "read_encoding", "read_json", "read_run", "read_scales", "read_shard", "read_voc",
    "refine", "render_jpeg", "resample", "rounded", "saliency", "scenes", "scenes_file", "scores",
    "select_maps", "share_with_interval", "sharpen", "show_boxes", "show_heat", "show_legend", "show_table",
    "split_instances", "summarize", "summary_table", "sweep_boxes", "tabulate_figures", "tabulate_models",
    "tabulate_summary", "tapped", "two_sided", "unit", "varies", "weigh_evidence", "weights", "wilson",
    "write_labels", "write_whole",
]
# fmt: on
