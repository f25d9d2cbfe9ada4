"""The benchmark: its methods are the same formula, its measures are right, and README repeats its figures."""

import json
import os
import re
from pathlib import Path
from time import monotonic, sleep

import bench
import bench_commands
import bench_ladder
import numpy as np
import psutil
import pytest
import torch

import vlscore

ROOT = Path(vlscore.__file__).parent


def test_the_plain_loop_gives_the_saliency_of_encode(rn, chelsea):
    image = vlscore.load_image(chelsea)
    image_embedding, base = rn.encode_image(torch.stack([rn.preprocess(image), torch.zeros(3, 96, 96)]))
    text = vlscore.unit(image_embedding - base)  # some of the maps fit it better than the empty image
    loop, nothing = bench.plain_loop(rn, image, text)
    heat, further = bench.ours(rn, image, text, precision="float32")
    assert nothing is None
    torch.testing.assert_close(heat, loop, atol=1e-5 * loop.max().item(), rtol=0)
    assert torch.equal(further(text), heat)


@pytest.mark.parametrize("skip_constant", [False, True])
def test_batches_give_the_saliency_of_the_plain_loop(rn, chelsea, skip_constant):
    image = vlscore.load_image(chelsea)
    image_embedding, base = rn.encode_image(torch.stack([rn.preprocess(image), torch.zeros(3, 96, 96)]))
    text = vlscore.unit(image_embedding - base)
    loop, _ = bench.plain_loop(rn, image, text)
    heat = bench_ladder.run_in_batches(rn, image, text, skip_constant)
    if skip_constant:  # the rows of a constant map add nothing to the loop's sum either
        assert bench.correlation(heat, loop) > 0.9999
    torch.testing.assert_close(heat, loop, atol=1e-5 * loop.max().item(), rtol=0)


def test_the_ladder_is_written_step_by_step(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_ladder, "OUT", tmp_path / "ladder.json")
    monkeypatch.setattr(bench, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(bench_ladder, "MODEL", "scenes-vit")  # which has few maps
    monkeypatch.setattr(bench_ladder, "AGAIN", 0)
    assert bench_ladder.main([]) == 0
    rows = json.loads((tmp_path / "ladder.json").read_text())["rows"]
    assert [row["step"] for row in rows] == [*bench_ladder.STEPS, bench_ladder.FURTHER]
    assert rows[-2]["passes"] == bench.FAST + 3 < rows[0]["passes"] == 129
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[2]["correlation"] > 0.9999 and rows[3]["correlation"] > 0.9999


@pytest.mark.parametrize("library", ["pytorch-grad-cam", "torchcam"])
def test_libraries_look_at_the_same_layer_for_the_same_text(scenes_rn, drawn, library):
    image = vlscore.load_image(vlscore.read_dataset(drawn).photos[0].path)
    text = scenes_rn.encode_text(["an image of a red cross."])[0]
    heat, _ = bench.METHODS[library](scenes_rn, image, text)
    heat = torch.nn.functional.interpolate(heat[None, None].float(), (5, 5), mode="area")[0, 0]
    assert heat.shape == (5, 5)
    assert heat.max() > heat.min()


def test_a_measurement(drawn, tmp_path):
    photo = vlscore.read_dataset(drawn).photos[0].path
    found = bench.measure("scenes-rn", "fast", photo, tmp_path)
    assert 0 < found["prompt"] < found["seconds"] < 60
    assert 0 <= found["megabytes"] < found["peak"] < 20_000
    assert np.array(found["saliency"]).shape == (5, 5)


def test_correlation_is_pearsons():
    first, second = np.random.default_rng(0).random((2, 3, 4))
    expected = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert bench.correlation(first, second) == pytest.approx(expected)
    assert bench.correlation(None, None) == 1
    assert bench.correlation(None, second) == 0
    assert bench.correlation(np.ones((2, 2)), np.eye(2)) == 0


def test_agreement_of_three_images():
    heat, other = torch.eye(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    box, half = (0, 0, 10, 10), (0, 0, 10, 5)
    rows = [
        (heat, [box], 0.8, heat, [box], 0.8),
        (heat, [box], 0.8, other, [half], 0.4),
        (heat, [], 0.0, None, [], 0.0),
    ]
    found = bench.agreement(rows)
    expected = np.corrcoef(heat.numpy().ravel(), other.numpy().ravel())[0, 1]
    assert found["correlation"] == pytest.approx((1 + expected + 0) / 3)
    assert found["worst"] == 0
    assert found["same_hit"] == pytest.approx(2 / 3)
    assert found["box_iou"] == pytest.approx(0.75)
    assert found["gt_known"] == pytest.approx(1 / 3)


def test_selections_of_all_maps_change_nothing(scenes_rn, drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    exact = vlscore.encode(scenes_rn, photo.path, precision="float32")
    for select in bench.SELECTIONS.values():
        assert sorted(select(exact, 10**6).maps.sum((1, 2)).tolist()) == sorted(
            exact.maps.sum((1, 2)).tolist()
        )


def test_the_predicted_selection_is_encode_with_keep(scenes_rn, drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    exact = vlscore.encode(scenes_rn, photo.path, precision="float32")
    kept = vlscore.encode(scenes_rn, photo.path, keep=20, precision="float32")
    found = bench.predicted(exact, 20)
    torch.testing.assert_close(found.mask_embeddings, kept.mask_embeddings, atol=1e-5, rtol=0)


def test_the_reference_counts_a_known_network(tmp_path, drawn, monkeypatch):
    """The operations of RN50's shape: 6.1 G multiply-adds in its convolutions and attention pool."""
    photo, sizes = vlscore.read_dataset(drawn).photos[0].path, []

    def timed(call, matrix):
        """A run of half a second or a whole one; the fastest counts."""
        sizes.append(matrix.shape)
        assert torch.equal(call(matrix[:4, :4]), matrix[:4, :4] @ matrix[:4, :4])
        return 1 / len(sizes[:2]), None

    monkeypatch.setattr(bench, "timed", timed)
    facts = bench.reference("RN50", photo, tmp_path)
    assert facts["maps"] == 2048
    assert facts["flop"] == pytest.approx(12e9, rel=0.1)
    assert facts["rate"] == 2 * sizes[0][0] * sizes[0][1] ** 2 / 0.5
    assert facts["precision"] == vlscore.choose_precision("auto", torch.device("cpu"))


def test_alone_is_another_process():
    assert bench.alone(os.getpid) != os.getpid()


def test_rates_by_hand():
    facts = {"maps": 100, "varying": 90, "precision": "float32", "flop": 2e9, "rate": 1e12}
    speed = {"exact": {"seconds": 0.5}, "fast": {"seconds": 0.2, "card": 300.4}}
    exact, fast = bench.rates({"reference": {"tiny": facts}, "speed": {"tiny": speed}}, "tiny")
    assert exact == "  exact: 180 passes a second, 36% of float32 products"
    assert fast == "  fast: 320 passes a second, 64% of float32 products, 300 MB of the card at most"
    assert bench.rates({"reference": {}, "speed": {"tiny": speed}}, "tiny") == []


# ── Commands, classes and data sets ──────────────────────────────────────────────────────────────


def test_other_load_runs_while_the_block_does_and_ends_with_it():
    with bench_commands.other_load(1) as (child,):
        process = psutil.Process(child.pid)
        before, deadline = process.cpu_times().user, monotonic() + 60
        while process.cpu_times().user < before + 0.5:
            assert monotonic() < deadline
            sleep(0.1)
    assert not child.is_alive()


def test_parts_of_an_encoding_are_timed(tmp_path):
    found = bench_commands.time_parts("scenes-rn", 4, 1, tmp_path)
    assert min(found["passes (s)"], found["plain (s)"], found["refined (s)"]) > 0
    assert found["refined over plain"] == found["refined (s)"] / found["plain (s)"]


def test_an_encoding_without_masks_is_timed(tmp_path):
    found = bench_commands.time_keeps("scenes-rn", (0, 16), 1, tmp_path)
    assert min(found["keep=0 (s)"], found["keep=16 (s)"]) > 0
    assert found["keep=16 over none"] == found["keep=16 (s)"] / found["keep=0 (s)"]


def test_classes_are_timed_together_and_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setenv("VLSCORE_CACHE", str(tmp_path))
    found = bench_commands.time_classes(4)
    assert found["names"] == 4
    assert found["together (s)"] > 0 < found["one by one (s)"]


# ── The committed run ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def committed():
    return json.loads((ROOT / "data" / "bench.json").read_text())


def test_the_table_has_every_method(committed):
    text = bench.table(committed)
    for method in bench.METHODS:
        assert method in text
    for name in committed["speed"]:
        assert name in text


def test_readme_repeats_the_committed_run(committed):
    """Each row of its table: model, seconds of a library, of exact, ratios of exact and fast, a prompt."""
    text = (ROOT / "README.md").read_text()
    for name in sorted({"lite0-minilm", *bench.SIZES} & set(committed["speed"])):
        rows = committed["speed"][name]
        library, exact, fast = (rows[method]["seconds"] for method in ("pytorch-grad-cam", "exact", "fast"))
        (line,) = re.findall(rf"^\| `?{name}`?[^|]*\| \d+ s \|.*$", text, re.MULTILINE)
        for figure in (f"{library:.0f} s", f"{library / exact:.1f}×", f"{library / fast:.0f}×"):
            assert figure in line, (figure, line)


def test_the_page_on_speed_repeats_the_time_without_masks():
    stored = json.loads((ROOT / "data" / "bench_commands.json").read_text())
    text = (ROOT / "book" / "results_speed.md").read_text()
    found = re.search(r"64 masks take ([\d.]+) times as long with `lite0-minilm`, and ([\d.]+) times", text)
    ratios = [stored[f"masks, {name}"]["keep=64 over none"] for name in ("lite0-minilm", "RN50")]
    assert list(found.groups()) == [f"{each:.1f}" for each in ratios]


WAITED = ("help", "first", "second", "refined", "refined, keep=8", "busy")  # in the page's order


def test_the_page_on_speed_repeats_the_waiting_times():
    stored = json.loads((ROOT / "data" / "bench_commands.json").read_text())
    text = (ROOT / "book" / "results_speed.md").read_text()
    refined, waiting = (
        text[text.index(f":name: {name}") :] for name in ("results-refined-time", "results-waiting")
    )
    names = re.findall(r"[*-] - (.+)", refined.split(":::")[0].replace("  - ", "- - "))
    found = dict(zip(names[:6], names[6:]))
    for name, shown in found.items():
        key = {"ConvNeXt-B (open_clip)": "open_clip:convnext_base"}.get(name, name.strip("`"))
        assert shown == f"{stored[f'encode, keep=64, {key}']['refined over plain']:.2f}"
    assert len(found) == 6
    shown = [float(each) for each in re.findall(r"^  - ([\d.]+)$", waiting.split(":::")[0], re.M)]
    times = stored["localize"]
    expected = [times[f"{key} (s)"] for key in WAITED]
    expected += [stored["classes"][f"{key} (s)"] for key in ("together", "one by one")]
    expected += [1 / photos_a_second for photos_a_second in stored["data sets"].values()]
    assert shown == pytest.approx(expected, abs=0.051)
