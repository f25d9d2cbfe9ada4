"""Refinement: larger copies, discriminant, clusters, instances; against formulas and other libraries."""

import json
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vlscore
import vlscore_cli
from vlscore_lib import refinement
from vlscore_lib.models import openai_clip

FLOAT32 = vlscore.EncodingOptions(precision="float32")

CLIP = vlscore.import_clip().model.CLIP


@pytest.fixture(scope="module")
def scene(drawn):
    """A drawn scene of several objects."""
    return next(photo for photo in vlscore.read_dataset(drawn).photos if len(photo.objects) > 1)


def refined(model, image, **options):
    return vlscore.encode(model, image, refined=True, precision="float32", **options)


# ── Larger pixels ──────────────────────────────────────────────────────────────────────────────────


def test_a_grid_of_the_same_side_stays():
    embedding = torch.randn(1 + 9, 5)
    torch.testing.assert_close(openai_clip.resize_grid(embedding, 3), embedding)


def test_a_resized_grid_keeps_the_class_token_and_grows_along_each_axis():
    embedding = torch.randn(1 + 16, 3, generator=torch.manual_seed(0))
    found = openai_clip.resize_grid(embedding, 4)
    assert torch.equal(found[0], embedding[0])
    ramp = torch.cat([torch.zeros(1, 1), torch.arange(4.0).repeat(4)[:, None]])  # grows along x
    grid = openai_clip.resize_grid(ramp, 8)[1:, 0].view(8, 8)
    assert torch.equal(grid, grid[:1].expand(8, 8))  # the same in each row
    assert (grid[0].diff() > 0).all()
    torch.testing.assert_close(grid[0, 3:5].mean(), torch.tensor(1.5))


@pytest.mark.parametrize("name", ["rn", "vit"])
def test_larger_pixels_are_read_as_by_a_clip_built_for_them(request, name):
    """Against CLIP's own code at twice the resolution, with interpolated positional embeddings."""
    model = request.getfixturevalue(name)
    size = {"rn": (192, (1, 1, 1, 1), 8, None), "vit": (128, 2, 128, 16)}[name]
    larger = CLIP(64, *size, 77, 49408, 64, 1, 1).eval()
    state = model.clip.state_dict()
    key = "visual.attnpool.positional_embedding" if name == "rn" else "visual.positional_embedding"
    side = {"rn": 6, "vit": 8}[name]
    old, grid = state[key], round((len(state[key]) - 1) ** 0.5)
    channels = [F.interpolate(c.view(1, 1, grid, grid), (side, side), mode="bicubic") for c in old[1:].T]
    state[key] = torch.cat([old[:1], torch.stack([c.flatten() for c in channels], 1)])
    larger.load_state_dict(state)
    pixels = torch.randn(2, 3, size[0], size[0], generator=torch.manual_seed(1))
    with torch.no_grad():
        wanted = larger.visual(pixels)
        torch.testing.assert_close(model.run_visual(pixels), wanted, atol=1e-5, rtol=1e-5)


def test_several_layers_are_read_in_one_pass(rn):
    pixels = torch.randn(1, 3, 96, 96, generator=torch.manual_seed(2))
    found = rn.read_layers(pixels, [("layer4", "activation"), ("layer2", "activation")])
    for each, layer in zip(found, ("layer4", "layer2")):
        assert torch.equal(each, rn.feature_maps(pixels, layer))


@pytest.mark.parametrize("name", ["rn", "vit", "lite0"])
def test_no_layer_runs_after_the_last_one_that_is_read(request, name):
    model = request.getfixturevalue(name)
    first, *_, last = model.layer_modules()
    ran, modules = [], model.layer_modules()
    handles = [
        modules[layer].register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer in (first, last)
    ]
    pixels = torch.zeros(1, 3, model.input_size, model.input_size)
    found = model.read_layers(pixels, [(first, "activation")])[0]
    assert ran == [first]
    assert torch.equal(found, model.read_layers(pixels, [(last, "activation"), (first, "activation")])[1])
    assert ran[1:] == [first, last]
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in modules.values())
    assert model.encode_image(pixels).isfinite().all()  # a pass without a reader goes to the end


@pytest.mark.parametrize("name", ["rn", "vit", "lite0"])
def test_scales_are_the_image_read_at_a_larger_size(request, name, chelsea):
    model = request.getfixturevalue(name)
    scales, features = vlscore.read_scales(model, chelsea, FLOAT32)
    sizes = {"rn": (96, 288), "vit": (192,), "lite0": (224, 672)}[name]  # whole cells of 32, or 16
    assert len(scales) == len(sizes)
    for scale, side in zip(scales, sizes):
        pixels = model.preprocess(chelsea, size=side)[None]
        assert pixels.shape == (1, 3, side, side)
        if not model.is_vit:
            maps = model.read_layers(pixels, [(model.layers[-1], "activation")])[0][0]
            torch.testing.assert_close(scale.maps, maps.cpu(), atol=1e-4 * maps.abs().max().item(), rtol=0)
            torch.testing.assert_close(scale.cells, model.cell_embeddings(scale.maps), atol=1e-4, rtol=1e-4)
    finer = {"rn": "layer2", "vit": str((len(model.layers) - 1) // 2), "lite0": "block7"}[name]
    of_features = model.preprocess(chelsea, size=sizes[-1])[None]
    wanted = F.normalize(model.read_layers(of_features, [(finer, "activation")])[0][0], dim=0)
    torch.testing.assert_close(features, wanted.cpu(), atol=1e-4, rtol=0)


def test_fine_features_are_pooled_above_forty_eight_cells(rn, chelsea, monkeypatch):
    wanted = vlscore.read_scales(rn, chelsea, FLOAT32)[1]
    monkeypatch.setattr(refinement, "FINEST", 20)
    found = vlscore.read_scales(rn, chelsea, FLOAT32)[1]
    assert wanted.shape[-1] == 36
    assert found.shape[-1] == 18
    torch.testing.assert_close(found.norm(dim=0), torch.ones(18, 18))


# ── Clusters ───────────────────────────────────────────────────────────────────────────────────────


def test_clusters_are_the_nodes_of_ward_s_tree():
    """Against scikit-learn's own cut of the tree, at every number of clusters."""
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.feature_extraction.image import grid_to_graph

    features = torch.randn(6, 7, 7, generator=torch.manual_seed(3))
    found = {tuple(each.flatten().int().tolist()) for each in vlscore.cluster_maps(features)}
    points = F.normalize(features, dim=0).flatten(1).T.double().numpy()
    wanted = set()
    for count in range(2, refinement.LEAVES + 1):
        ward = AgglomerativeClustering(count, connectivity=grid_to_graph(7, 7))
        labels = ward.fit_predict(points)
        wanted |= {tuple((labels == n).astype(int)) for n in range(count)}
    assert found == wanted
    assert len(found) == 2 * refinement.LEAVES - 2


def test_clusters_find_a_square_of_other_features():
    features = torch.zeros(2, 8, 8)
    features[0], features[:, 2:5, 3:7] = 1.0, torch.tensor([0.0, 1.0])[:, None, None]
    square = torch.zeros(8, 8)
    square[2:5, 3:7] = 1
    assert any(torch.equal(each, square) for each in vlscore.cluster_maps(features)[:2])


# ── Discriminant and diffusion ─────────────────────────────────────────────────────────────────────


def test_the_discriminant_is_scikit_learn_s():
    """A seed of 0 and 1 gives two classes; scikit-learn shrinks the covariance in the same way.

    A cell that counts three times for the background is there three times.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    features = torch.randn(4, 8, 8, generator=torch.manual_seed(4))
    seed = torch.zeros(8, 8)
    seed[2:6, 1:5] = 1.0
    features[0] += 2 * seed
    found = vlscore.discriminate(seed, features).flatten()
    points, is_object = features.flatten(1).T.numpy(), seed.flatten().bool().numpy()
    lda = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=refinement.SHARPENING.shrinkage, priors=[0.5, 0.5], store_covariance=True
    )
    at_border = torch.ones(8, 8, dtype=torch.bool)
    at_border[1:7, 1:7] = False
    times = np.where(is_object | ~at_border.flatten().numpy(), 1, int(refinement.SHARPENING.border))
    rows = np.repeat(np.arange(64), times)
    lda.fit(points[rows], is_object[rows])
    wanted = points @ lda.coef_[0]
    of_background = rows[~is_object[rows]]
    low, high = wanted[of_background].mean(), wanted[is_object].mean()
    np.testing.assert_allclose(found, (wanted - low) / (high - low), atol=1e-2)
    assert found[is_object].mean().item() == pytest.approx(1, abs=1e-5)
    assert found[of_background].mean().item() == pytest.approx(0, abs=1e-5)


def test_the_discriminant_finds_the_whole_of_a_seed_s_region():
    """The seed sees one cell of a square; the features are the same in all of it."""
    features = torch.zeros(2, 6, 6)
    features[0], features[:, 1:4, 1:5] = 1.0, torch.tensor([0.0, 1.0])[:, None, None]
    seed = torch.zeros(6, 6)
    seed[2, 2] = 1.0
    found = vlscore.discriminate(seed, features)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:4, 1:5] = True
    assert found[inside].min() > found[~inside].max() + 0.5


def test_a_seed_is_the_weighted_geometric_mean_of_the_evidence():
    evidence = torch.tensor([[[0.9, 0.8, 0.1]], [[0.8, 0.0, 0.2]], [[0.5, 0.7, 0.9]]])
    means = [(v**3 * r**2 * mean) ** (1 / 6) for v, r, mean in evidence[:, 0].T.double().numpy()]
    wanted = (np.array(means) - min(means)) / (max(means) - min(means))
    np.testing.assert_allclose(vlscore.combine_evidence(evidence, (3, 2, 1))[0], wanted, atol=1e-6)


def test_evidence_of_power_zero_is_left_out():
    evidence = torch.rand(3, 4, 4)
    evidence[1, 0] = 0  # would rule the row out
    found = vlscore.combine_evidence(evidence, (2, 0, 0))
    torch.testing.assert_close(found, stretched(evidence[0]))


@pytest.mark.parametrize("slope", [1.0, 0.3, 0.0, -2.0])
def test_the_similarity_map_counts_as_far_as_it_agrees_with_the_masks(slope):
    """Of noise and a share of the masks' evidence: 3, 2 r⁴ and 1, with NumPy's correlation r."""
    random = np.random.default_rng(0)
    masks, mean = random.random((2, 6, 7))
    similarity = np.maximum(slope * masks + 0.3 * random.random((6, 7)) + 2 * (slope < 0), 0)
    evidence = torch.tensor(np.stack([masks, similarity, mean])).float()
    r = max(np.corrcoef(masks.ravel(), similarity.ravel())[0, 1], 0)
    assert vlscore.weigh_evidence(evidence) == pytest.approx((3, 2 * r**4, 1), abs=1e-4)
    assert vlscore.weigh_evidence(evidence, (1, 1, 0), agreement=1) == pytest.approx((1, r, 0), abs=1e-4)


def test_a_map_that_is_the_same_everywhere_agrees_with_nothing():
    masks, mean = torch.rand(2, 4, 4)
    assert vlscore.weigh_evidence(torch.stack([masks, torch.zeros(4, 4), mean])) == (3, 0, 1)


def test_features_that_are_all_alike_tell_nothing():
    found = vlscore.discriminate(torch.rand(4, 4), torch.ones(3, 4, 4) / 3**0.5)
    assert found.isfinite().all()


def test_diffusion_by_hand():
    generator = torch.manual_seed(4)
    features, heat = torch.randn(5, 3, 3, generator=generator), torch.rand(3, 3, generator=generator)
    features = F.normalize(features, dim=0)
    f, s = features.flatten(1).double().numpy(), heat.flatten().double().numpy()
    wanted = np.zeros(9)
    for i in range(9):
        power = [np.exp(8 * f[:, i] @ f[:, j]) for j in range(9)]
        wanted[i] = sum(p * each for p, each in zip(power, s)) / sum(power)
    np.testing.assert_allclose(vlscore.diffuse(heat, features).flatten(), wanted, rtol=1e-4)


def test_diffusion_fills_the_region_of_the_seed():
    features = torch.zeros(2, 6, 6)
    features[0], features[:, 1:4, 1:5] = 1.0, torch.tensor([0.0, 1.0])[:, None, None]
    seed = torch.zeros(6, 6)
    seed[2, 2] = 1.0
    found = vlscore.diffuse(seed, features)
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:4, 1:5] = True
    assert found[inside].min() > 100 * found[~inside].max()
    assert found[inside].max() - found[inside].min() < 1e-6


def upsampled(x, side):
    return F.interpolate(x[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]


def stretched(x):
    return (x - x.min()) / (x.max() - x.min())


def test_a_refined_saliency_of_a_cnn_by_hand(rn, chelsea):
    encoding, text = refined(rn, chelsea), F.normalize(torch.randn(64, generator=torch.manual_seed(5)), dim=0)
    w = vlscore.weights(encoding, text, 0.01)
    side = encoding.features.shape[-1]

    def unit_peak(x):
        return upsampled(x.clamp(min=0) / x.max(), side)

    seen = sum(unit_peak((w[:, None, None] * scale.maps).sum(0)) for scale in encoding.scales)
    named = sum(unit_peak((text[:, None, None] * scale.cells).sum(0)) for scale in encoding.scales)
    stands_out = sum(unit_peak(scale.maps.mean(0)) for scale in encoding.scales)
    agreement = np.corrcoef(seen.flatten(), named.flatten())[0, 1].clip(min=0)
    similarity = 2 * agreement**4  # the power of the similarity map
    wanted = stretched((seen**3 * named**similarity * stands_out) ** (1 / (4 + similarity)))
    for _ in range(2):
        inside = vlscore.discriminate(wanted, encoding.features).clamp(0, 1)
        wanted = stretched((wanted * inside).sqrt())
    wanted = stretched(upsampled(wanted, 96))
    found = vlscore.saliency(encoding, text, 0.01)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert found.shape == (96, 96)
    assert (found.min(), found.max()) == (0, 1)


def test_a_refined_saliency_of_a_vit_by_hand(vit, chelsea):
    encoding = refined(vit, chelsea)
    text = F.normalize(torch.randn(64, generator=torch.manual_seed(5)), dim=0)
    w = vlscore.weights(encoding, text, 0.01)
    (scale,) = encoding.scales
    spread = sum(each * region / region.sum() for each, region in zip(w, scale.maps))
    wanted = vlscore.diffuse(upsampled(spread, encoding.features.shape[-1]), encoding.features)
    found = vlscore.saliency(encoding, text, 0.01)
    torch.testing.assert_close(found, stretched(upsampled(wanted, 64)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["rn", "vit", "lite0"])
def test_a_refined_encoding_is_saved_whole(request, name, chelsea, tmp_path):
    model = request.getfixturevalue(name)
    encoding, text = refined(model, chelsea, keep=8), model.encode_text(["an image of a cat."])[0]
    encoding.save(tmp_path / "encoding")
    again = vlscore.Encoding.load(tmp_path / "encoding")
    assert len(again.scales) == len(encoding.scales) > 0
    assert torch.equal(again.features, encoding.features)
    before, after = (vlscore.saliency(each, text, 1.0) for each in (encoding, again))
    assert (before is None) == (after is None)
    if before is not None:  # elsewhere in memory, products of matrices may round otherwise
        torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    assert again.threshold == model.refined_threshold


def test_plain_is_untouched(rn, chelsea):
    """Refinement adds scales, and changes nothing of the rest."""
    plain, more = vlscore.encode(rn, chelsea, precision="float32"), refined(rn, chelsea)
    assert (plain.scales, plain.features) == ((), None)
    assert plain.threshold == rn.threshold
    for name in ("maps", "mask_embeddings", "base_embedding", "image_embedding"):
        assert torch.equal(getattr(plain, name), getattr(more, name))


def test_an_absent_object_has_no_refined_saliency(rn, chelsea):
    encoding = refined(rn, chelsea)
    like_empty = encoding.base_embedding.repeat(len(encoding.maps), 1)  # no map beats the empty image
    encoding = replace(encoding, mask_embeddings=like_empty)
    assert vlscore.saliency(encoding, rn.encode_text(["an image of a cat."])[0]) is None
    assert vlscore.find_boxes(None, encoding) == []


# ── Presence ───────────────────────────────────────────────────────────────────────────────────────


def test_p_is_counted_by_hand(rn, chelsea):
    encoding = vlscore.encode(rn, chelsea, keep=8, precision="float32")
    others = F.normalize(torch.randn(19, 64, generator=torch.manual_seed(6)), dim=1)
    e, whole = encoding.mask_embeddings.numpy(), encoding.image_embedding.numpy()

    def fit(text):
        return max(float(text @ each) for each in e) + float(text @ whole)

    for text in others[:5]:
        rest = [fit(each) for each in others.numpy()]
        above = sum(each > fit(text.numpy()) + 1e-6 for each in rest)
        assert vlscore.p_absent(encoding, text, others) == (1 + above) / 20


def test_p_of_a_random_text_is_uniform(rn, chelsea):
    """What p promises: of texts drawn like the others, a share p has at most p."""
    encoding = vlscore.encode(rn, chelsea, keep=8, precision="float32")
    texts = F.normalize(torch.randn(600, 64, generator=torch.manual_seed(7)), dim=1)
    p = np.sort([vlscore.p_absent(encoding, each, texts[400:]) for each in texts[:400]])
    assert np.abs(p - np.linspace(0, 1, 400)).max() < 1.63 * (1 / 400 + 1 / 200) ** 0.5  # Kolmogorov, 1 %


def test_other_texts_are_everyday_things(lite0):
    assert vlscore.embed_other_words(lite0).shape == (80, 1000)
    person = lite0.encode_text(["an image of a person."])[0]
    torch.testing.assert_close(vlscore.embed_other_words(lite0)[0], person, atol=1e-5, rtol=0)


def test_other_texts_of_scenes_are_their_classes(scenes_rn):
    from vlscore_lib import scenes

    names = [names[0] for _, names in scenes.classes()]
    wanted = scenes_rn.encode_text([vlscore.TEMPLATE.format(each) for each in names])
    found = vlscore.embed_other_words(scenes_rn)
    assert found.shape == wanted.shape
    assert ((found @ wanted.T).amax(1) > 1 - 1e-5).all()  # in whatever order


def test_refined_says_that_a_thing_is_absent(lite0, chelsea):
    """A cat's photo, where plain VL-Score finds a volcano: one map that beats the empty image is enough."""
    encoding = refined(lite0, chelsea, keep=64)
    prompts = ["an image of a cat.", "an image of a volcano."]
    cat, volcano = (vlscore.localize(lite0, encoding, each) for each in prompts)
    assert cat.present
    assert cat.p_absent <= 0.05
    assert (volcano.present, volcano.boxes, volcano.saliency) == (False, [], None)
    assert volcano.p_absent > 0.05
    plain = vlscore.localize(lite0, encoding.without_refinement(), "an image of a volcano.")
    assert plain.present == (plain.score > plain.base_score)
    assert plain.p_absent is None


def test_what_is_assumed_present_is_boxed_all_the_same(lite0, chelsea, tmp_path):
    """As evaluations do, which ask a photo only for what it shows."""
    encoding, prompt = refined(lite0, chelsea, keep=16), "an image of a volcano."
    absent = vlscore.localize(lite0, encoding, prompt)
    found = vlscore.localize(lite0, encoding, prompt, assume_present=True)
    assert (absent.present, found.present, absent.p_absent) == (False, True, found.p_absent)
    text = lite0.encode_text([prompt])[0]
    assert found.boxes == vlscore.find_boxes(vlscore.saliency(encoding, text, lite0.temperature), encoding)
    assert found.boxes
    classes, options = ["cat", "volcano"], {"keep": 16, "precision": "float32", "encodings": tmp_path}
    for _ in range(2):  # encoded, and from the store
        boxes = vlscore.Labeller(lite0, classes, assume_present=True, **options)(chelsea).boxes
        assert {each.label for each in boxes} == set(classes)
        assert {each.label for each in vlscore.Labeller(lite0, classes, **options)(chelsea).boxes} == {"cat"}
    none = vlscore.Labeller(lite0, ["volcano"], assume_present=True, **options)(chelsea).boxes
    assert [each.box for each in none] == [each.box for each in boxes if each.label == "volcano"]


@pytest.mark.parametrize("options", [{"layer": "1"}, {"maps": "query"}])
def test_a_refined_vit_takes_no_other_maps(vit, chelsea, options):
    with pytest.raises(vlscore.VLScoreError, match="leave layer and maps out"):
        refined(vit, chelsea, **options)


def test_refinement_takes_no_principal_components(vit, chelsea):
    with pytest.raises(vlscore.VLScoreError, match="leave pca out"):
        refined(vit, chelsea, maps="query", pca=2)


# ── Instances ──────────────────────────────────────────────────────────────────────────────────────


def two_hills(saddle):
    """Two hills of height 1 on a 40×40 map, with a ridge of the given height between them."""
    x = np.linspace(0, 1, 40)
    profile = np.interp(x, [0, 0.2, 0.5, 0.8, 1], [0, 1, saddle, 1, 0])
    return torch.from_numpy(np.outer(np.interp(x, [0, 0.5, 1], [0, 1, 0]), profile)).float()


@pytest.mark.parametrize(("saddle", "count"), [(0.95, 1), (0.7, 2)])
def test_hills_are_instances_where_the_saddle_is_deep(rn, saddle, count):
    image = Image.new("RGB", (96, 96))
    encoding = refined(rn, image)
    boxes = vlscore.find_boxes(two_hills(saddle), encoding, 0.6)
    assert len(boxes) == count
    if count == 2:  # cut near the middle column, and nothing lost
        left, right = sorted(boxes)
        assert left[2] == pytest.approx(48, abs=3)
        assert right[0] == pytest.approx(48, abs=3)
        (whole,) = vlscore.find_boxes(two_hills(0.95), encoding, 0.6)
        assert min(left[0], right[0]) == pytest.approx(whole[0], abs=3)


def test_a_part_without_a_peak_of_its_own_is_no_instance(rn):
    encoding = refined(rn, Image.new("RGB", (96, 96)))
    heat = torch.zeros(40, 40)
    heat[4:20, 4:20] = 1.0
    heat[30:32, 30:32] = 0.7  # above the threshold, and smoothed away
    assert len(vlscore.find_boxes(heat, encoding.without_refinement(), 0.4)) == 2
    (box,) = vlscore.find_boxes(heat, encoding, 0.4)
    assert vlscore.box_iou([box], [(9.6, 9.6, 48, 48)]) > 0.8


def test_plain_boxes_are_not_split(rn):
    encoding = vlscore.encode(rn, Image.new("RGB", (96, 96)), precision="float32")
    assert len(vlscore.find_boxes(two_hills(0.7), encoding, 0.6)) == 1


# ── Command line and evaluation ────────────────────────────────────────────────────────────────────


def first_photos(folder, count):
    """A dataset of the folder's first photos."""
    dataset = vlscore.read_dataset(folder)
    return replace(dataset, photos=dataset.photos[:count])


@pytest.mark.parametrize("name", ["scenes-rn", "scenes-vit"])
def test_refined_boxes_fit_drawn_scenes_better(name, drawn):
    """The drawn boxes are known exactly, and none of these scenes chose a parameter."""
    model, dataset = vlscore.load_model(name, "cpu"), vlscore.read_dataset(drawn)
    ious = {True: [], False: []}
    for photo in dataset.photos:
        text = vlscore.class_embedding(model, dataset.classes[photo.label])
        more = refined(model, photo.path, keep=32)
        # A CNN's refined encoding holds the plain one; a ViT's has other maps.
        plain = (
            vlscore.encode(model, photo.path, keep=32, precision="float32")
            if model.is_vit
            else more.without_refinement()
        )
        for encoding, threshold in ((more, model.refined_threshold), (plain, model.threshold)):
            heat = vlscore.saliency(encoding, text, encoding.temperature)
            boxes = vlscore.find_boxes(heat, encoding, threshold)
            ious[encoding.refined].append(vlscore.box_iou(boxes, photo.boxes))
    assert np.mean(ious[True]) > np.mean(ious[False]) + 0.05


def test_evaluate_measures_refined_beside_plain(scenes_rn, drawn, tmp_path):
    dataset = first_photos(drawn, 8)
    records = vlscore.evaluate(
        scenes_rn, dataset, tmp_path / "run", refined=True, keep=16, precision="float32"
    )
    plain = vlscore.evaluate(scenes_rn, dataset, keep=16, precision="float32")
    tau, alpha = scenes_rn.temperature, scenes_rn.refined_threshold
    for row, photo in enumerate(dataset.photos[:4]):
        encoding = refined(scenes_rn, photo.path, keep=16)
        text = vlscore.class_embedding(scenes_rn, dataset.classes[photo.label])
        boxes = vlscore.find_boxes(vlscore.saliency(encoding, text, tau), encoding)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        at = summary["thresholds"].index(alpha)
        found = records.iloc[row][f"iou: refined VL-Score, τ = {tau:g}"][at]
        assert found == pytest.approx(vlscore.box_iou(boxes, photo.boxes), abs=1e-6)
    for each in (1, tau):  # plain VL-Score and the baselines are those of a plain run
        for method in (f"VL-Score, τ = {each:g}", "mean of all maps", "Grad-CAM"):
            ours, theirs = (frame[f"iou: {method}"] for frame in (records, plain))
            shared = [n / 20 for n in range(1, 20)]
            taken = [
                [sorted({alpha_, *shared}).index(each) for each in shared]
                for alpha_ in (alpha, scenes_rn.threshold)
            ]
            for a, b in zip(ours, theirs):
                assert [a[n] for n in taken[0]] == [b[n] for n in taken[1]]
    assert summary["results"] != summary["methods"][f"VL-Score, τ = {scenes_rn.temperature:g}"]
    table = vlscore.summary_table(summary)
    above = table.split("GT-known at its own α above others")[1]
    assert "constant box" in above
    assert f"\n  VL-Score, τ = {scenes_rn.temperature:g} " in above


def test_a_refined_run_shows_plain_at_a_threshold_of_its_own(scenes_rn, drawn, tmp_path):
    dataset, ways = first_photos(drawn, 6), {"plain": {}, "refined": {"refined": True}}
    ways["chosen"] = {"refined": True, "plain_threshold": 0.33}
    found = {}
    for way, options in ways.items():
        vlscore.evaluate(scenes_rn, dataset, tmp_path / way, keep=8, **options)
        found[way] = vlscore.read_json(tmp_path / way / "summary.json")
    name = f"VL-Score, τ = {scenes_rn.temperature:g}"
    for way, alpha in (("plain", scenes_rn.threshold), ("refined", scenes_rn.threshold), ("chosen", 0.33)):
        summary, method = found[way], found[way]["methods"][name]
        at = summary["thresholds"].index(alpha)
        assert (method["own_threshold"], summary["methods"]["Grad-CAM"]["own_threshold"]) == (alpha, None)
        if alpha == scenes_rn.threshold:
            assert method["gt_known"][at] == found["plain"]["results"]["gt_known"]
        rows = [line for line in vlscore.summary_table(summary).splitlines() if line.startswith(f"{name} ")]
        assert any(line[len(name) :].split()[0].rstrip("*") == f"{alpha:g}" for line in rows)
        shown = vlscore.tabulate_summary(summary)
        assert f"{alpha:g}" in [each.rstrip("*") for each in shown.loc[shown["Method"] == name, "α"]]
    older = json.loads(json.dumps(found["refined"]))  # a file of an earlier version
    for method in older["methods"].values():
        del method["own_threshold"]
    [line] = {
        line
        for line in vlscore.summary_table(older).splitlines()
        if f"  {older['threshold']:g} " in line and line.startswith("VL-Score, τ = 1 ")
    } or [None]
    assert line


def test_the_difference_of_hits_is_paired():
    random = np.random.default_rng(0)
    theirs = random.random(400) < 0.5
    ours = theirs | (random.random(400) < 0.1)
    found = vlscore.paired_difference(ours, theirs)
    assert found["value"] == pytest.approx(ours.mean() - theirs.mean(), abs=1e-6)
    assert 0 < found["low"] < found["value"] < found["high"]
    error = np.sqrt((ours != theirs).mean() / 400)  # of a paired difference, nearly
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.2)
    assert found["p"] <= 2 / 1001 + 1e-6
    assert vlscore.paired_difference(theirs, theirs)["p"] == 1


def test_p_counts_the_resamples_on_the_other_side():
    assert vlscore.two_sided(np.array([1.0, 2, 3, -1])) == pytest.approx(2 * 2 / 5)
    assert vlscore.two_sided(np.zeros(9)) == 1


def test_the_command_line_refines(scene, capsys):
    found = {}
    for way in ((), ("--refined",)):
        command = [
            "localize",
            str(scene.path),
            "an image of a cross.",
            *("--model", "scenes-rn", "--keep", "64", "--json"),
            *way,
        ]
        assert vlscore_cli.main(command) == 0
        found[way] = json.loads(capsys.readouterr().out)["results"][0]
    assert found[()]["score"] == found["--refined",]["score"]
    assert found[()]["boxes"] != found["--refined",]["boxes"]


def test_a_run_is_not_resumed_by_another_way(scenes_rn, drawn, tmp_path):
    dataset = first_photos(drawn, 2)
    vlscore.evaluate(scenes_rn, dataset, tmp_path / "run", keep=4)
    with pytest.raises(vlscore.VLScoreError, match="refined False, not True"):
        vlscore.evaluate(scenes_rn, dataset, tmp_path / "run", resume=True, keep=4, refined=True)


def test_a_refined_vit_is_measured(drawn):
    records = vlscore.evaluate(
        vlscore.load_model("scenes-vit", "cpu"), first_photos(drawn, 4), refined=True, keep=16
    )
    assert isinstance(records, pandas.DataFrame)
    assert any(column.startswith("iou: refined VL-Score") for column in records)
    assert not any(column.startswith("iou: VL-Score") for column in records)
