"""What the masks add: fewer masked passes are the module's, and the table's figures are by hand."""

from dataclasses import replace

import compare_passes as passes
import pytest
import study_sets
import torch

import vlscore

A = len(passes.THRESHOLDS)


@pytest.fixture(autouse=True)
def threads():
    """A process of the studies takes one core; the tests give it back."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize("keep", [8, 64])
def test_fewer_passes_are_those_of_the_module(rn, chelsea, keep):
    exact = vlscore.encode(rn, chelsea, precision="float32")
    wanted = vlscore.encode(rn, chelsea, keep=keep, precision="float32")
    found = passes.with_passes(exact, keep)
    assert found.indices.tolist() == wanted.indices.tolist()
    torch.testing.assert_close(found.mask_embeddings, wanted.mask_embeddings, atol=1e-4, rtol=0)


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


def judged(iou, found, in_box):
    return {"iou": iou, "found": found, "in_box": in_box, "on_side": in_box}


def test_a_row_compares_with_the_same_method_without_a_pass():
    nothing, hit = [0.1] * A, [0.1] * 4 + [0.9] + [0.1] * (A - 5)
    asks = [study_sets.Ask(None, ("a",), ((0, 0, 1, 1), (2, 2, 3, 3)), (9, 9), 0)] * 4
    records = [
        {
            ("plain", 0): judged(hit if n == 0 else nothing, [2 * (n == 0)] * A, n == 0),
            ("plain", 8): judged(hit if n < 3 else nothing, [n < 3] * A, True),
        }
        for n in range(4)
    ]
    zero, eight = passes.table(asks, records)
    assert (zero["passes"], eight["passes"]) == (0, 8)
    assert eight["threshold"] == passes.THRESHOLDS[4]
    assert (zero["gt_known"]["value"], eight["gt_known"]["value"]) == (0.25, 0.75)
    assert (zero["objects_found"]["value"], eight["objects_found"]["value"]) == (0.25, 0.375)
    assert eight["gain"]["value"] == 0.5
    assert eight["peak_gain"]["value"] == 0.75
    assert zero["gain"]["value"] == 0
    assert "peak_on_side" not in eight


def test_a_text_that_beats_nothing_finds_nothing(rn, chelsea):
    encoding = vlscore.encode(rn, chelsea, keep=4, precision="float32")
    ask = study_sets.Ask(None, ("a",), ((0, 0, 9, 9),), (96, 96), 0)
    found = passes.judge(None, encoding, ask)
    assert found == {"iou": [0.0] * A, "found": [0] * A, "in_box": False, "on_side": False}
