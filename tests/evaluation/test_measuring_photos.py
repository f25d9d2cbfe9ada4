"""Records of an evaluation: what is measured of each photo."""

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from evaluation_helpers import ALPHA, OURS, QUICK, SWEEP, TAU, iou_by_hand, same_records

import vlscore
from vlscore_lib import prompts
from vlscore_lib.evaluation import workers


def text_of(model, names):
    """A class's embedding: the mean over its names, of length 1."""
    every = model.encode_text([f"an image of a {name}." for name in names]).double().mean(0)
    return (every / every.norm()).float()


def test_a_record_an_image_in_the_order_of_the_photos(undisturbed, drawn):
    _, records = undisturbed
    assert list(records["image"]) == [f"scenes_val_{n:08}" for n in range(1, 25)]
    solutions = (drawn / "LOC_val_solution.csv").read_text().splitlines()[1:]
    for line, (_, record) in zip(solutions, records.iterrows()):
        name, words = line.split(",")
        assert (record["image"], record["label"]) == (name, words.split()[0])
        assert record["objects"] == len(words.split()) / 5
        assert (record["width"], record["height"]) == (224, 224)


OPTIONS = {
    "default": {},
    "layer": {"layer": "layer2"},
    "crop": {"fit": "crop"},
    "pad": {"fit": "pad", "temperature": 0.5, "threshold": 0.33},
}


def check_record(model, photo, record, text, options, taus, alphas):
    """Compare a record with boxes found step by step and the IoU of them by the formula."""
    encoding = vlscore.encode(model, photo.path, **options)
    heats = {OURS(tau): vlscore.saliency(encoding, text, tau) for tau in taus}
    heats["mean of all maps"] = encoding.maps.double().mean(0).clamp(min=0).float()
    if "layer" not in options:
        pixels = model.preprocess(photo.path, options.get("fit", "squash"))
        last = model.feature_maps(pixels[None])[0]
        heats["similarity map (CAM)"] = model.similarity_map(last, text).relu()
    for method, heat in heats.items():
        for n, alpha in enumerate(alphas):
            boxes = vlscore.find_boxes(heat, encoding, alpha)
            assert record[f"iou: {method}"][n] == pytest.approx(iou_by_hand(boxes, photo.boxes), abs=1e-9)
            first = iou_by_hand(boxes[:1], photo.boxes)
            assert record[f"largest: {method}"][n] == pytest.approx(first, abs=1e-9)
            assert record[f"boxes: {method}"][n] == len(boxes)
        assert len(record[f"iou: {method}"]) == len(alphas)
    s = [F.cosine_similarity(each, text, dim=0).item() for each in encoding.mask_embeddings]
    base = F.cosine_similarity(encoding.base_embedding, text, dim=0).item()
    assert (record["score"], record["base_score"]) == pytest.approx((max(s), base), abs=1e-6)


@pytest.mark.parametrize("row", [2, 17])
def test_a_record_equals_boxes_found_step_by_step(undisturbed, scenes_rn, drawn, row):
    dataset = vlscore.read_dataset(drawn)
    photo, text = dataset.photos[row], text_of(scenes_rn, dataset.classes[dataset.photos[row].label])
    record = undisturbed[1].iloc[row]
    check_record(scenes_rn, photo, record, text, {"keep": 16}, (TAU, 1.0), sorted({ALPHA, *SWEEP}))
    assert len({*record[f"iou: {OURS(TAU)}"]}) > 3


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_that_of_encode(rn, photos, name):
    options = OPTIONS[name] | {"keep": 4}
    records = vlscore.evaluate(rn, photos, thresholds=(0.2, 0.7), **options)
    tau, alpha = options.pop("temperature", 0.01), options.pop("threshold", 0.6)
    beating = [row for row in range(12) if records["score"][row] > records["base_score"][row]]
    for row in beating[:2]:
        photo = photos.photos[row]
        text = text_of(rn, photos.classes[photo.label])
        check_record(rn, photo, records.iloc[row], text, options, (tau, 1.0), sorted({0.2, 0.7, alpha}))
    assert len(beating) > 2


def test_maps_of_a_vit_and_their_components_are_measured(vit, photos):
    options = {"maps": "key", "pca": 2, "layer": "0"}
    few = vlscore.Dataset(photos.layout, photos.photos[:3], photos.classes, [])
    records = vlscore.evaluate(vit, few, thresholds=(0.5,), **options)
    for row in range(3):
        text = text_of(vit, photos.classes[photos.photos[row].label])
        check_record(vit, photos.photos[row], records.iloc[row], text, options, (0.01, 1.0), (0.5, 0.55))


def test_top5_are_the_classes_of_highest_cosine_in_order(undisturbed, scenes_rn, drawn):
    dataset = vlscore.read_dataset(drawn)
    texts = np.stack([text_of(scenes_rn, names).numpy() for names in dataset.classes.values()])
    pixels = torch.stack([scenes_rn.preprocess(photo.path) for photo in dataset.photos])
    cosines = (
        vlscore.fast_encoder(scenes_rn)(pixels).numpy() @ texts.T
    )  # bfloat16 orders near ties in its own way
    for found, row in zip(undisturbed[1]["top5"], cosines):
        assert list(found) == [list(dataset.classes)[n] for n in np.argsort(-row)[:5]]


@pytest.mark.parametrize("templates", ["report", "clip"])
def test_a_class_is_embedded_by_all_its_names_in_all_templates(rn, photos, templates):
    wordings = prompts.prompt_templates(templates)
    assert len(wordings) == {"report": 1, "clip": 80}[templates]
    assert {"report": "an image of a {}.", "clip": "itap of a {}."}[templates] in wordings
    classes = dict(list(photos.classes.items())[:2])
    found = vlscore.class_embeddings(rn, classes.values(), wordings)
    for row, names in enumerate(classes.values()):
        every = rn.encode_text([each.replace("{}", name) for name in names for each in wordings]).numpy()
        mean = every.mean(0)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)
    assert found.shape == (2, 64)


def test_a_data_set_of_few_classes_has_no_more_than_these_in_top5(rn, photos):
    label = photos.photos[0].label
    others = [each for each in photos.classes if each != label][:2]
    few = vlscore.Dataset("official", photos.photos[:1], {each: ["red"] for each in (label, *others)}, [])
    (top,) = vlscore.evaluate(rn, few, keep=1)["top5"]
    assert sorted(top) == sorted([label, *others])


def test_the_absent_class_is_not_in_the_photo(undisturbed, scenes_rn, drawn):
    dataset, records = vlscore.read_dataset(drawn), undisturbed[1]
    for photo, label in zip(dataset.photos, records["absent_label"]):
        assert label in dataset.classes
        assert label not in {each for each, _ in photo.objects}
    assert len(set(records["absent_label"])) > 12
    encoding = vlscore.encode(scenes_rn, dataset.photos[0].path, keep=16)
    text = text_of(scenes_rn, dataset.classes[records["absent_label"][0]])
    s = encoding.mask_embeddings @ text
    expected = s.max().item(), (encoding.base_embedding @ text).item()
    found = records["absent_score"][0], records["absent_base_score"][0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_absent_classes_are_those_of_the_seed_and_the_photo(rn, photos):
    """Whatever else is in the data set."""

    def absent(rows, seed):
        few = vlscore.Dataset("official", [photos.photos[row] for row in rows], photos.classes, [])
        records = vlscore.evaluate(rn, few, keep=1, seed=seed, thresholds=(), temperatures=())
        return dict(zip(records["image"], records["absent_label"]))

    first, some = absent(range(6), 1), absent((4, 2), 1)
    assert some == {name: first[name] for name in some}
    assert len(some) == 2
    assert absent(range(6), 2) != first


def test_a_photo_of_all_classes_has_no_absent_class(rn, photos):
    photo = photos.photos[0]
    shown = {each: ["red circle"] for each, _ in photo.objects}
    records = vlscore.evaluate(rn, vlscore.Dataset("official", [photo], shown, []), keep=1)
    assert records["absent_label"][0] == ""
    assert np.isnan([records["absent_score"][0], records["absent_base_score"][0]]).all()
    assert vlscore.summarize(records, vlscore.Protocol(keep=1).resolve(rn))["presence"] is None


def test_constant_boxes_have_sides_from_10_to_100_percent(finished, photos):
    _, records = vlscore.read_run(finished)
    for photo, found in zip(photos.photos, records["constant"]):
        assert len(found) == 91
        for percent, iou in zip(range(10, 101), found):
            x, y = (side * (100 - percent) / 200 for side in (96, 80))
            assert iou == pytest.approx(iou_by_hand([(x, y, 96 - x, 80 - y)], photo.boxes), abs=1e-9)
    assert {*records["width"], *records["height"]} == {96, 80}


def test_where_every_map_is_capped_there_are_no_boxes_and_the_iou_is_0(rn, photos):
    """The empty image's own embedding as a text: no map can beat it."""
    photo = photos.photos[0]
    base = vlscore.encode(rn, photo.path, keep=1).base_embedding
    texts = torch.stack([base if each == photo.label else -base for each in photos.classes])
    protocol = vlscore.Protocol(keep=4).resolve(rn)
    image, job = (
        vlscore.load_image(photo.path),
        workers.EvaluationContext("rn", protocol, list(photos.classes), texts),
    )
    record = vlscore.measure(rn, photo, False, image, vlscore.encode(rn, image, keep=4), job)
    assert record["score"] <= record["base_score"] == pytest.approx(1, abs=1e-6)
    for tau in (0.01, 1):
        assert record[f"iou: {OURS(tau)}"] == record[f"largest: {OURS(tau)}"] == [0] * 19
        assert record[f"boxes: {OURS(tau)}"] == [0] * 19
    assert max(record["boxes: mean of all maps"]) > 0  # which no prompt can cap
    assert record["absent_score"] > record["absent_base_score"]
    summary = vlscore.summarize(pandas.DataFrame([record] * 3), protocol)
    assert summary["presence"]["label_said_absent"]["value"] == 1
    assert summary["presence"]["other_said_absent"]["value"] == 0


def test_records_are_the_same_with_and_without_a_folder(rn, photos, finished):
    records = vlscore.evaluate(rn, photos, **QUICK)
    same_records(records, vlscore.read_run(finished)[1])
    assert len(records) == 12
