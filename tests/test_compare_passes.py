"""What the masks add: fewer masked passes are the module's, and the table's figures are by hand."""

import json
from dataclasses import replace
from types import SimpleNamespace

import choose_refinement
import compare_passes as passes
import one_pass_vit
import pytest
import study_sets
import torch

import vlscore

A = len(passes.THRESHOLDS)
CENTRED, CORNER = (20, 20, 80, 80), (0, 0, 20, 20)


@pytest.mark.parametrize("keep", [8, 64])
def test_fewer_passes_are_those_of_the_module(rn, chelsea, keep):
    exact = vlscore.encode(rn, chelsea, precision="float32")
    wanted = vlscore.encode(rn, chelsea, keep=keep, precision="float32")
    found = passes.with_passes(exact, keep)
    assert found.indices.tolist() == wanted.indices.tolist()
    torch.testing.assert_close(found.mask_embeddings, wanted.mask_embeddings, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("count", "least"), [(62, 64), (64, 64), (128, 128), (512, float("inf"))])
def test_the_curve_ends_where_all_maps_are_encoded(count, least):
    assert passes.least_for_all(count) == least


@pytest.mark.parametrize("name", ["scenes-rn", "scenes-vit"])
def test_without_a_masked_pass_nothing_depends_on_mask_embeddings(name, drawn):
    model = vlscore.load_model(name, "cpu")
    ask = study_sets.read_asks(drawn)[0]
    refined = vlscore.encode(model, ask.path, keep=8, precision="float32", refined=True)
    plain = vlscore.encode(model, ask.path, keep=8, precision="float32")
    text = vlscore.class_embedding(model, ask.names)
    lost = [
        replace(each, mask_embeddings=torch.full_like(each.mask_embeddings, torch.nan))
        for each in (plain, refined)
    ]
    found = passes.without_passes(model, *lost, text)
    assert list(found) == [passes.PLAIN, passes.MEAN, passes.REFINED, passes.TEXTLESS]
    for heat, _ in found.values():
        assert heat.isfinite().all()
        assert heat.min() >= 0
    other = vlscore.class_embedding(model, ["blue star"])
    again = passes.without_passes(model, *lost, other)
    for method in (passes.MEAN, passes.TEXTLESS):  # which read no text
        assert torch.equal(found[method][0], again[method][0])
    for method in (passes.PLAIN, passes.REFINED):
        assert not torch.equal(found[method][0], again[method][0])


def test_a_vit_has_the_maps_of_other_methods_too(drawn):
    model, ask = study_sets.load("scenes-vit"), study_sets.read_asks(drawn)[0]
    text = vlscore.class_embedding(model, ask.names)
    plain, refined = (
        vlscore.encode(model, ask.path, keep=1, precision="float32", refined=each) for each in (False, True)
    )
    found = passes.find_one_pass(model, ask.path, plain, refined, text)
    assert {*found} == {*passes.METHODS} - {passes.PLAIN, passes.REFINED, passes.MEAN, passes.TEXTLESS}
    heat, encoding = found["MaskCLIP"]
    assert torch.equal(heat, one_pass_vit.maskclip_map(model, ask.path, text).relu()) and encoding is plain
    heat, encoding = found["MaskCLIP, refined"]
    assert heat.shape == (model.input_size,) * 2 and encoding is refined


def judged(iou, found, in_box):
    return {"iou": iou, "found": found, "in_box": in_box, "on_side": in_box}


def test_a_row_compares_with_the_same_method_without_a_pass():
    nothing, hit = [0.1] * A, [0.1] * 4 + [0.9] + [0.1] * (A - 5)
    asks = [study_sets.Ask(None, ("a",), ((0, 0, 1, 1), (2, 2, 3, 3)), (9, 9), 0)] * 4
    records = [
        {
            ("plain", 0): judged(hit if n == 0 else nothing, [2 * (n == 0)] * A, n == 0),
            ("plain", 8): judged(hit if n < 3 else nothing, [n < 3] * A, True),
            (passes.MEAN, 0): judged(hit if n > 1 else nothing, [n > 1] * A, True),
        }
        for n in range(4)
    ]
    zero, eight, mean = passes.table("scenes-rn", asks, records)
    assert (zero["passes"], eight["passes"]) == (0, 8)
    assert eight["threshold"] == passes.THRESHOLDS[4]
    assert (zero["gt_known"]["value"], eight["gt_known"]["value"]) == (0.25, 0.75)
    assert (zero["objects_found"]["value"], eight["objects_found"]["value"]) == (0.25, 0.375)
    assert eight["gain"]["value"] == 0.5
    assert eight["peak_gain"]["value"] == 0.75
    assert zero["gain"]["value"] == 0
    assert mean["gain"]["value"] == 0.25
    assert eight["over"] == {passes.MEAN: eight["over"][passes.MEAN]}
    assert eight["over"][passes.MEAN]["value"] == 0.25
    assert "over" not in zero
    assert zero["over_most_passes"]["value"] == -0.5
    assert eight["over_most_passes"]["value"] == 0
    assert "peak_on_side" not in eight
    assert "over_plain" not in eight


def test_refined_is_compared_with_plain_on_the_same_images():
    miss, hit = judged([0.1] * A, [0] * A, False), judged([0.9] * A, [1] * A, True)
    asks = [study_sets.Ask(None, ("a",), ((0, 0, 1, 1),), (9, 9), 0)] * 4
    keys = [(method, 0) for method in (passes.PLAIN, passes.REFINED)]
    records = [dict(zip(keys, (hit if n == 0 else miss, miss if n == 0 else hit))) for n in range(4)]
    *_, refined = passes.table("scenes-rn", asks, records)
    assert refined["over_plain"]["value"] == 0.5


@pytest.mark.parametrize("name", ["scenes-rn", "scenes-vit"])
@pytest.mark.parametrize("refined", [False, True])
def test_boxes_are_those_that_localize_finds(name, refined, drawn):
    """A method's maps are enlarged as the module does it, so its boxes are the same at each threshold."""
    model = vlscore.load_model(name, "cpu")
    ask = study_sets.read_asks(drawn)[0]
    encoding = vlscore.encode(model, ask.path, keep=8, precision="float32", refined=refined)
    prompt = vlscore.TEMPLATE.format(ask.names[0])
    text = model.encode_text([prompt])[0]
    judged = passes.judge(vlscore.saliency(encoding, text, encoding.temperature), encoding, ask)
    for n in range(0, A, 4):
        found = vlscore.localize(model, encoding, prompt, threshold=passes.THRESHOLDS[n])
        boxes = vlscore.find_boxes(found.saliency, encoding, passes.THRESHOLDS[n])
        assert judged["iou"][n] == pytest.approx(vlscore.box_iou(boxes, ask.boxes), abs=1e-6)


def test_a_refined_map_without_a_masked_pass_is_enlarged_as_refine_does(drawn):
    model = vlscore.load_model("scenes-rn", "cpu")
    ask = study_sets.read_asks(drawn)[0]
    refined = vlscore.encode(model, ask.path, keep=8, precision="float32", refined=True)
    text = vlscore.class_embedding(model, ask.names)
    found = passes.without_passes(model, refined.without_refinement(), refined, text)
    size = (refined.input_size, refined.input_size)
    assert {method for method, (heat, _) in found.items() if heat.shape == size} == {
        passes.REFINED,
        passes.TEXTLESS,
    }
    assert found[passes.PLAIN][0].shape == refined.maps.shape[1:]


def test_a_text_that_beats_nothing_finds_nothing(rn, chelsea):
    encoding = vlscore.encode(rn, chelsea, keep=4, precision="float32")
    ask = study_sets.Ask(None, ("a",), ((0, 0, 9, 9),), (96, 96), 0)
    found = passes.judge(None, encoding, ask)
    nothing = {"iou": [0.0] * A, "found": [0] * A, "ratio": [0.0] * A}
    assert found == nothing | {"in_box": False, "on_side": False}


def stored_sets():
    for model, sets in json.loads(passes.OUT.read_text()).items():
        for kind, found in sets.items():
            yield pytest.param(model, found, id=f"{model}, {kind}")


@pytest.mark.parametrize("model, found", stored_sets())
def test_the_stored_rows_agree_with_one_another(model, found):
    """Every method and number of passes is there, on all images, and a gain is what two rows differ by."""
    rows = {(row["method"], row["passes"]): row for row in found["rows"]}
    counts = [0, *passes.KEEPS]
    if model == "scenes-vit":
        expected = {(passes.PLAIN, n) for n in counts} | {(passes.REFINED, n) for n in counts if n <= 64}
        expected |= {(method, 0) for method in passes.METHODS if "CLIP" in method}
    else:
        expected = {(method, n) for method in (passes.PLAIN, passes.REFINED) for n in counts}
    expected |= {(passes.MEAN, 0), (passes.TEXTLESS, 0)}
    assert {key for key in rows if key[1] != "all"} == expected
    for (method, count), row in rows.items():
        if count != "all":
            assert row["images"] == found["images"]
            base = passes.BASES.get(method, method)
            gain = row["gt_known"]["value"] - rows[base, 0]["gt_known"]["value"]
            assert row["gain"]["value"] == pytest.approx(gain, abs=2e-6)
            for other, difference in row.get("over", {}).items():
                above = row["gt_known"]["value"] - rows[other, 0]["gt_known"]["value"]
                assert difference["value"] == pytest.approx(above, abs=2e-6)
            assert set(row.get("over", ())) == {
                other for other, zero in expected if zero == 0 < count and passes.BASES.get(other) == method
            }
            most = max(n for each, n in expected if each == method)
            below = row["gt_known"]["value"] - rows[method, most]["gt_known"]["value"]
            assert row["over_most_passes"]["value"] == pytest.approx(below, abs=2e-6)
            if method == passes.REFINED:
                above = row["gt_known"]["value"] - rows[passes.PLAIN, count]["gt_known"]["value"]
                assert row["over_plain"]["value"] == pytest.approx(above, abs=2e-6)


def test_the_pages_have_the_stored_figures_of_the_unseen_photos():
    stored = json.loads(passes.OUT.read_text())["lite0-minilm"]["raccoon"]["rows"]
    at = {row["method"]: row["gt_known_at_own_threshold"] for row in stored if row["passes"] == 128}
    plain, refined = at[passes.PLAIN]["value"], at[passes.REFINED]
    shown = "{:.1f}** ({:.1f}–{:.1f})".format(*(100 * refined[key] for key in ("value", "low", "high")))
    assert f"{100 * plain:.1f} | **{shown}" in (passes.OUT.parents[1] / "README.md").read_text()


def test_the_chapter_repeats_the_differences_of_eight_and_128_passes():
    chapter = (passes.OUT.parents[1] / "notebooks" / "07_what_the_masks_add.ipynb").read_text()
    stored = json.loads(passes.OUT.read_text())
    for name in ("lite0-minilm", "scenes-rn"):
        for found in stored[name].values():
            (row,) = [row for row in found["rows"] if (row["method"], row["passes"]) == (passes.REFINED, 8)]
            value, *ends = (100 * row["over_most_passes"][key] for key in ("value", "low", "high"))
            assert ends[0] >= -7.05  # as the chapter says
            shown = f"<td>{value:+.1f} ({ends[0]:+.1f} to {ends[1]:+.1f})</td>".replace("-", "−")
            assert shown in chapter
    (refined,) = [
        row
        for row in stored["lite0-minilm"]["raccoon"]["rows"]
        if (row["method"], row["passes"]) == (passes.REFINED, 128)
    ]
    shown = "{:.1f} points ({:.1f} to {:.1f}, p = {:.3f})".format(
        *(100 * refined["over_plain"][key] for key in ("value", "low", "high")), refined["over_plain"]["p"]
    )
    results = (passes.OUT.parents[1] / "book" / "results.md").read_text()
    assert shown in results


def test_the_results_page_has_the_refined_boxes_by_number_of_masks():
    page = (passes.OUT.parents[1] / "book" / "results.md").read_text()
    table = page[page.index(":name: results-keep\n") :].split("\n:::")[0]
    head, *rows = (row.split("\n  - ") for row in table.split("\n* - ")[1:])
    keeps = [int(cell.removesuffix(" masks")) for cell in head[1:4]]
    names = {"imagenet": "ImageNet", "kangaroo": "Kangaroos", "unknown": "Words made unknown"}
    names |= {"raccoon": "Raccoons", "pairs": "Pairs"}
    shown = {name: cells for name, *cells in rows}
    for kind, found in json.loads(passes.OUT.read_text())["lite0-minilm"].items():
        form = "{:.1f} ({:.1f}–{:.1f})" if kind == "raccoon" else "{:.1f}"
        at = {row["passes"]: row for row in found["rows"] if row["method"] == passes.REFINED}
        own = [at[keep]["gt_known_at_own_threshold"] for keep in keeps]
        expected = [form.format(*(100 * each[key] for key in ("value", "low", "high"))) for each in own]
        for keep in keeps[:-1]:
            minus = at[keep]["at_own_thresholds"]["over_most_passes"]
            points = "{:.1f} ({:.1f} to {:.1f})".format(
                *(100 * minus[key] for key in ("value", "low", "high"))
            )
            expected.append(points.replace("-", "−"))
        assert shown.pop(f"{names[kind]} ({found['images']})") == expected
    assert (keeps, shown) == ([8, 64, 128], {})


def test_the_chapter_has_the_constant_box_of_each_set():
    chapter = json.loads((passes.OUT.parents[1] / "notebooks" / "07_what_the_masks_add.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in chapter["cells"])
    table = text[text.index(":name: tab-07-sets") :].split("```")[0]
    cells = [line.split("|") for line in table.splitlines() if line.startswith("| ")]
    shown = {cell[1].strip().lower(): cell[-2].strip() for cell in cells[1:]}
    stored = json.loads(passes.OUT.read_text())
    names = {"kangaroo": "kangaroos", "raccoon": "raccoons", "unknown": "unknown words"}
    names |= {"one thing": "one object", "one of two things": "one of two objects"}
    for kind, found in (stored["lite0-minilm"] | stored["scenes-rn"]).items():
        (row,) = [row for row in found["rows"] if (row["method"], row["passes"]) == (passes.REFINED, 128)]
        above = row["at_own_thresholds"]["over_constant"]["value"]
        constant = 100 * (row["gt_known_at_own_threshold"]["value"] - above)
        assert shown.pop(names.get(kind, kind)) == f"{constant:.1f}"
    assert not shown


def at(threshold: float, hits) -> list[dict]:
    """What is judged of prompts that are hit at one threshold alone, or not at all."""
    place = passes.THRESHOLDS.index(threshold)
    return [{"iou": [0.6 * (hit and n == place) for n in range(A)]} for hit in hits]


def test_own_thresholds_and_the_best_constant_box_by_hand():
    """Refined hits 3 of 4, plain and mask-free refinement two others, and the best box those in between."""
    lite0 = study_sets.load("lite0-minilm")
    one_pass = passes.find_own_threshold("lite0-minilm", passes.REFINED, 0)
    columns = {
        (passes.REFINED, 128): at(lite0.refined_threshold, (True, True, True, False)),
        (passes.PLAIN, 128): at(lite0.threshold, (False, False, True, True)),
        (passes.REFINED, 0): at(one_pass, (True, False, False, True)),
    }
    records = [dict(zip(columns, each)) for each in zip(*columns.values())]
    boxes = (CENTRED, CORNER, CENTRED, CORNER)
    asks = [SimpleNamespace(size=(100, 100), boxes=[box], side=None) for box in boxes]
    own = passes.find_own_hits("lite0-minilm", records)
    found = passes.compare_at_own_thresholds((passes.REFINED, 128), own, asks)
    assert {name: each["value"] for name, each in found.items()} == {
        "over_plain": 0.25,
        "over_one_pass": 0.25,
        "over_constant": 0.25,
    }
    assert passes.compare_at_own_thresholds((passes.REFINED, 8), own, asks) == {}


def test_what_needs_no_masked_pass_has_the_threshold_that_the_tuning_photos_chose():
    variants = json.loads(choose_refinement.OUT.read_text())["variants"]
    stored = {row["variant"]: row["threshold"] for row in variants}
    found = passes.find_own_threshold("lite0-minilm", passes.TEXTLESS, 0)
    assert found == stored[choose_refinement.TEXTLESS]
    assert passes.find_own_threshold("lite0-minilm", passes.PLAIN, 0) is None  # the similarity map
    assert passes.find_own_threshold("scenes-rn", passes.TEXTLESS, 0) is None


def test_a_threshold_that_was_not_measured_gives_no_comparison(monkeypatch):
    facts = SimpleNamespace(threshold=0.345, refined_threshold=0.123)
    monkeypatch.setattr(study_sets, "load", lambda _: facts)
    records = [{(passes.REFINED, 128): {"iou": [0.9] * A}}]
    assert passes.find_own_hits("scenes-rn", records) == {}
