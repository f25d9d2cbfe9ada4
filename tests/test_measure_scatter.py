"""The study of scatter: windows of equal area, and objects in them by hand."""

import json
from types import SimpleNamespace

import measure_scatter as study
import numpy as np
import pytest
import torch

import vlscore


def test_a_window_of_equal_area_is_the_brightest_part():
    masks = torch.tensor(
        [[[4.0, 3, 2, 1], [0, 0, 0, 0]], [[1.0, 1, 1, 1], [0, 0, 0, 0]], [[7.0] * 4, [7.0] * 4]]
    )
    ramp, plateau, flat = study.window_of_equal_area(masks, 0.25)
    assert ramp.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert plateau.tolist() == [[0.5] * 4, [0] * 4]  # equal values share the area
    assert flat.unique().tolist() == [0.25]


def test_every_window_has_the_area_that_was_asked_for():
    masks = torch.rand(5, 20, 20, generator=torch.Generator().manual_seed(0)).relu().round(decimals=1)
    assert study.window_of_equal_area(masks, 0.1).mean((1, 2)).tolist() == pytest.approx([0.1] * 5)


def make_photo(*boxes):
    return SimpleNamespace(size=(100, 100), objects=[("thing", box) for box in boxes])


def test_objects_in_windows_are_counted_by_hand():
    windows = torch.zeros(2, 10, 10)
    windows[0, :5, :5] = 1  # all of the first object, and a quarter of the image
    windows[1, 3:5, 3:7] = 1  # 4 of the first's 25 cells, and as many of the second's 10
    photo = make_photo((0, 0, 50, 50), (50, 30, 100, 50))
    area, objects, focus, others, ground = study.count_objects(windows, photo)
    assert area == pytest.approx((0.25 + 0.08) / 2)
    assert objects == (1 + 1) / 2  # 4 of 25 are too few, 4 of 10 are enough
    assert focus == (1 + 0.5) / 2
    assert (others, ground) == ((0 + 0.5) / 2, 0)
    assert study.share_on_one(windows, photo).tolist() == [1, 0.5]
    # The negative's window counts where it keeps more to one object.
    swapped = study.better_sign(windows, windows.flip(0), photo)
    assert torch.equal(swapped, windows[[0, 0]])


def test_the_ground_is_what_no_box_covers():
    windows = torch.zeros(3, 10, 10)
    windows[0, 2:6, 2:6] = 1  # 16 cells: 8 in the first box, 8 in the second, 4 of them in both
    windows[1, 8:, 8:] = 0.5  # beside the boxes
    photo = make_photo((20, 20, 40, 60), (30, 20, 50, 60))
    one, others, ground = (study.count_objects(windows[:1], photo))[2:]
    assert (one, others, ground) == (0.5, 0.25, 0.25)
    assert study.share_on_ground(windows, photo).tolist() == [0.25, 1, 0]
    assert study.count_objects(windows[2:], photo)[2:] == (0, 0, 0)  # an empty window lies on nothing


def test_another_scene_is_the_level_of_chance(drawn):
    """Of windows without any relation to the scene, as many lie on its objects as on those of another one."""
    first, second = vlscore.read_dataset(drawn).photos[:2]
    found = study.measure_scene("CNN, layer3", (first, second))
    same = study.measure_scene("CNN, layer3", (first, first))
    for name in ("brightest tenth", "better sign", "all maps, brightest tenth"):
        assert same[name] == same[f"{name}, another scene"] == found[name]
        assert found[f"{name}, another scene"] != found[name]
    assert found["better sign"][2] >= found["brightest tenth"][2]


def test_all_maps_are_those_that_vary(drawn):
    """With as many maps as there are, strong ones and all are the same."""
    photos = vlscore.read_dataset(drawn).photos[:2]
    found = study.measure_scene("ViT, block 3, attention", photos)
    for name in ("", ", another scene"):
        assert found[f"all maps, brightest tenth{name}"] == found[f"brightest tenth{name}"]


def test_the_positive_part_is_encoded_as_maps_of_its_own(drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    encoding = study.encode_positive("query", photo)
    model = vlscore.load_model("scenes-vit", "cpu")
    raw = vlscore.encode(model, photo.path, maps="query", keep=1)
    assert torch.equal(encoding.maps, raw.maps.relu())
    pixels = model.preprocess(photo.path)
    masked = pixels * vlscore.make_masks(encoding.maps[:3], model.input_size)[:, None]
    expected = model.encode_image(masked)
    torch.testing.assert_close(encoding.mask_embeddings[:3], expected, atol=1e-5, rtol=0)


def test_what_the_tuning_scenes_choose_is_measured_on_the_others():
    tuned, tested = np.zeros((4, 2, 3)), np.zeros((3, 2, 3))
    tuned[:3, 1, 2], tuned[:2, 0, 0] = 0.8, 0.8
    tested[0, 1, 2], tested[:, 0, 0] = 0.8, 0.8
    assert study.choose_and_measure(list(tuned), list(tested)).tolist() == [True, False, False]


def test_a_source_is_compared_with_the_cnn_scene_by_scene():
    rows = {"above half": np.array([[0.1, 1.0, 0.5, 0.1, 0.4], [0.1, 3.0, 0.7, 0.1, 0.2]])}
    twin = {"above half": np.array([[0.2, 1.0, 0.5, 0.1, 0.4], [0.2, 1.0, 0.1, 0.1, 0.8]])}
    found = study.describe("ViT", rows, twin)["above half"]
    assert found["objects"]["value"] == 2
    assert found["on ground"]["value"] == pytest.approx(0.3)
    assert found["more objects than the CNN"]["value"] == 1
    assert found["more on one object than the CNN"]["value"] == pytest.approx(0.3)


def make_rows(on_one, by_chance):
    """Two kinds of windows on two scenes, with shares on one object as given."""
    rows = {}
    for window in ("brightest tenth", "better sign"):
        for name, shares in ((window, on_one), (window + study.CHANCE, by_chance)):
            rows[name] = np.array([[0.1, 1.0, share, 0.0, 1 - share] for share in shares])
    return rows


def test_points_above_chance_are_paired_by_scene():
    rows = make_rows((0.5, 0.3), (0.2, 0.2))
    found = study.describe("ViT", rows, rows)
    assert found["brightest tenth"]["above chance"]["value"] == pytest.approx(0.2)
    assert "above chance" not in found["brightest tenth" + study.CHANCE]


def test_the_lead_of_a_layer_is_over_the_mean_of_the_vit_s_sources():
    found = {source: make_rows((0.3, 0.3), (0.2, 0.2)) for source in study.FULL_SOURCES}
    found[study.FULL_SOURCES[0]] = make_rows((0.7, 0.7), (0.2, 0.2))  # 0.5 above chance, the others 0.1
    for layer in ("layer3", "layer4"):
        found[f"CNN, {layer}"] = make_rows((0.8, 0.6), (0.1, 0.1))
        found[f"CNN, {layer}, before ReLU"] = make_rows((0.3, 0.3), (0.1, 0.1))
    leads = {(row["layer"], row["control"]): row["lead"]["value"] for row in study.compare_layers(found)}
    assert leads["layer3", "as the maps are"] == pytest.approx(0.6 - 0.2)
    assert leads["layer4", "both"] == pytest.approx(0.2 - 0.2)
    assert len(leads) == 2 * len(study.CONTROLS)


def test_maps_before_the_relu_are_the_layer_s_with_their_negative_values(scenes_rn, drawn):
    photo = vlscore.read_dataset(drawn).photos[0]
    for layer in ("layer3", "layer4"):
        before = study.read_maps(scenes_rn, (layer, study.BEFORE_RELU, None), photo)
        after = study.read_maps(scenes_rn, (layer, "activation", None), photo)
        assert (before < 0).any()
        torch.testing.assert_close(before.relu(), after)


def test_the_chapter_has_the_stored_windows():
    chapter = json.loads((study.OUT.parents[1] / "notebooks" / "02_feature_maps.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in chapter["cells"])
    table = text[text.index(":name: tab-02-strong") :].split("```")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    stored = {row["source"]: row for row in json.loads(study.OUT.read_text())["scatter"]}

    def points(window: dict) -> str:
        found = "{:.1f} ({:.1f} to {:.1f})".format(
            *(100 * window["above chance"][key] for key in ("value", "low", "high"))
        )
        return found.replace("-", "−")

    assert len(rows) == 7
    for name, *cells in ([cell.strip().replace("`", "") for cell in row] for row in rows):
        source = name.replace("ViT, ", "ViT, block 3, ").replace("block output", "activation")
        strong, every = (stored[source][kind] for kind in ("brightest tenth", "all maps, brightest tenth"))
        shares = [
            f"{100 * strong[f'on {where}']['value']:.0f}"
            for where in ("one object", "other objects", "ground")
        ]
        assert cells == [shares[0], points(strong), *shares[1:], points(every)]


def test_hits_by_threshold_are_those_of_the_model_s_own_boxes(drawn):
    model, texts = study.measure_scenes.load("rn")
    for photo in vlscore.read_dataset(drawn).photos[:2]:
        encoding = vlscore.encode(model, photo.path)
        heat = vlscore.saliency(encoding, texts[photo.label], model.temperature)
        found = study.find_hits("rn", photo)
        for alpha, hit in zip(study.measure_scenes.THRESHOLDS, found, strict=True):
            boxes = vlscore.find_boxes(heat, encoding, alpha)
            assert hit == (vlscore.box_iou(boxes, photo.boxes) > 0.5)


def test_the_stored_curve_has_the_hits_of_the_table_at_the_model_s_threshold():
    """257 of 500 scenes: `scripts/measure_scenes.py` found them, at the same τ and α."""
    stored = json.loads(study.OUT.read_text())["thresholds"]
    curve = {row["threshold"]: row for row in stored if row["source"] == "ViT, block 3, activation"}
    assert curve[0.2]["gt_known"]["value"] * 500 == pytest.approx(257)
    assert [*curve] == [*study.measure_scenes.THRESHOLDS]
