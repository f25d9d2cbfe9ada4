"""From a saliency map to boxes in the original image's pixels, `localize`, and the box IoU."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from PIL import Image
from scipy import ndimage

import vlscore
from vlscore_lib.boxes import boxes_above
from vlscore_lib.refinement import split_instances

SIDE = 20  # of the square input in these tests; a saliency map of this size is not resampled


def fitted(size, fit="squash", side=SIDE, threshold=0.5):
    """An Encoding that says only how an image was fitted."""
    nothing = torch.zeros(1, 1)
    fields = {each.name: nothing for each in dataclasses.fields(vlscore.Encoding)}
    region = vlscore.fit_region(size, fit)
    return vlscore.Encoding(**fields | {"input_size": side, "fit": region, "threshold": threshold})


def blobs(*parts, side=SIDE):
    """A saliency map of 1 in each of the parts (rows, columns), 0 elsewhere."""
    found = torch.zeros(side, side)
    for rows, columns in parts:
        found[slice(*rows), slice(*columns)] = 1
    return found


# ── Against boxes found another way ──────────────────────────────────────────────────────────────


def upsample(values, side):
    """Bilinear with aligned corners, one output pixel at a time."""
    h, w = values.shape
    found = np.zeros((side, side))
    for row, column in np.ndindex(side, side):
        y, x = row * (h - 1) / (side - 1), column * (w - 1) / (side - 1)
        top, left = min(int(y), h - 2), min(int(x), w - 2)
        dy, dx = y - top, x - left
        upper = values[top, left] * (1 - dx) + values[top, left + 1] * dx
        lower = values[top + 1, left] * (1 - dx) + values[top + 1, left + 1] * dx
        found[row, column] = upper * (1 - dy) + lower * dy
    return found


def flood(above):
    """Parts of a boolean picture, each a list of (row, column); neighbours share an edge."""
    left, parts = {tuple(each) for each in np.argwhere(above)}, []
    while left:
        part, open_ends = [], [left.pop()]
        while open_ends:
            row, column = open_ends.pop()
            part.append((row, column))
            for each in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                if each in left:
                    left.remove(each)
                    open_ends.append(each)
        parts.append(part)
    return parts


def place(part, size, fit, side):
    """The area, and the edges in pixels of the original, of a part of the square input."""
    (W, H), (rows, columns) = size, zip(*part)
    seen = {"squash": (W, H), "crop": (min(size),) * 2, "pad": (max(size),) * 2}[fit]
    edges = []
    for cells, whole, length in ((columns, W, seen[0]), (rows, H, seen[1])):
        start = whole / 2 - length / 2
        edges.append([start + min(cells) * length / side, start + (max(cells) + 1) * length / side])
    (x0, x1), (y0, y1) = edges
    return len(part) * seen[0] * seen[1] / side**2, (x0, y0, x1, y1)


def is_rounded(box, edges, size):
    """Whether a box has the edges, clipped to the image, to half a pixel; a thin one has one pixel."""
    for low, high, start, stop, whole in zip(box[:2], box[2:], edges[:2], edges[2:], size):
        start, stop = np.clip([start, stop], 0, whole)
        to_half = abs(low - start) <= 0.5 and abs(high - stop) <= 0.5
        thin = high == low + 1 and stop - start < 1 and abs(low - start) <= 1
        if not (to_half or thin):
            return False
    return True


shapes = st.tuples(st.integers(2, 6), st.integers(2, 6))
sizes = st.tuples(st.integers(5, 300), st.integers(5, 300))


@given(shapes, sizes, st.sampled_from(vlscore.FITS), st.integers(0, 10**6), st.floats(0.05, 0.95))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_boxes_equal_those_of_a_flood_fill(shape, size, fit, seed, threshold):
    saliency = np.random.default_rng(seed).random(shape) ** 2
    heat = upsample(saliency, SIDE)
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    assume(np.abs(heat - threshold).min() > 1e-5)  # no pixel that rounding could tip over

    found = vlscore.find_boxes(torch.tensor(saliency).float(), fitted(size, fit), threshold, min_area=0)

    above, (W, H) = heat > threshold, size
    for row, column in np.argwhere(above):
        _, (x0, y0, x1, y1) = place([(row, column)], size, fit, SIDE)
        above[row, column] = 0 < x0 + x1 < 2 * W and 0 < y0 + y1 < 2 * H  # its centre is in the image
    expected = [place(part, size, fit, SIDE) for part in flood(above)]
    assert len(found) == len(expected)
    for box in found:
        x0, y0, x1, y1 = box
        assert all(type(each) is int for each in box)
        assert 0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H
        assert any(is_rounded(box, edges, size) for _, edges in expected)
    if len({area for area, _ in expected}) == len(expected):
        in_order = [edges for _, edges in sorted(expected, reverse=True)]
        assert all(is_rounded(box, edges, size) for box, edges in zip(found, in_order))


def labelled_boxes(above, instances):
    """The boxes of one threshold, from a labelling of its own: (area, columns, rows), the largest first."""
    parts, count = ndimage.label(above)
    if instances is not None:
        peaks, basins = instances
        held = [len({*peaks[parts == n]} - {0}) for n in range(1, count + 1)]
        whole, parts = parts, np.zeros_like(parts)
        for n, peaks_in in enumerate(held, 1):
            if peaks_in == 1 or not any(held):
                parts[whole == n] = n
            elif peaks_in > 1:
                parts[whole == n] = n + 1000 * basins[whole == n]
    found = []
    for n in np.unique(parts[parts > 0]):
        rows, columns = np.nonzero(parts == n)
        found.append((len(rows), (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))
    return [box for _, box in sorted(found, key=lambda each: -each[0])]


@given(st.integers(3, 9), st.integers(0, 10**6), st.booleans(), st.booleans())
@settings(derandomize=True, deadline=None, max_examples=100)
def test_boxes_of_all_thresholds_at_once_equal_those_of_one_part_at_a_time(cells, seed, is_padded, is_split):
    random = np.random.default_rng(seed)
    heat = upsample(random.random((cells, cells)) ** 2, 40)
    heat = ((heat - heat.min()) / (heat.max() - heat.min())).astype(np.float32)
    instances = split_instances(heat, 0.1) if is_split else None
    height = 20 if is_padded else 40  # of the image; the input has as many rows above it as below
    top = (40 - height) // 2
    fit = vlscore.fit_region((40, height), "pad")
    inside = np.zeros((40, 40), bool)
    inside[top : 40 - top] = True
    thresholds = np.array([0.7, 0.2, 0.2, 1.0, *random.random(3)], np.float32)  # in no order, one twice
    for threshold, boxes in zip(thresholds, boxes_above(heat, thresholds, fit, 0, instances)):
        expected = labelled_boxes((heat > threshold) & inside, instances)
        assert boxes == [(x0, y0 - top, x1, y1 - top) for x0, y0, x1, y1 in expected]


@given(shapes, st.integers(0, 10**6), st.floats(0.05, 0.45), st.floats(0.5, 0.95))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_a_higher_threshold_gives_boxes_within_those_of_a_lower(shape, seed, low, high):
    saliency, encoding = torch.from_numpy(np.random.default_rng(seed).random(shape)), fitted((90, 60))
    outer = np.array(vlscore.find_boxes(saliency, encoding, low, min_area=0))
    for box in np.array(vlscore.find_boxes(saliency, encoding, high, min_area=0)):
        assert ((outer[:, :2] <= box[:2]).all(1) & (box[2:] <= outer[:, 2:]).all(1)).any()


def test_the_area_above_the_threshold_shrinks_as_it_rises():
    peak = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    areas = []
    for threshold in np.linspace(0.1, 0.9, 9):
        ((x0, y0, x1, y1),) = vlscore.find_boxes(peak, fitted((400, 200)), threshold)
        areas.append((x1 - x0) * (y1 - y0))
    assert areas == sorted(areas, reverse=True)
    assert len(set(areas)) > 5


# ── By hand ──────────────────────────────────────────────────────────────────────────────────────


def test_a_blob_of_a_squashed_image():
    """20 input pixels are 200 columns and 100 rows: one is 10 by 5."""
    assert vlscore.find_boxes(blobs(((2, 5), (4, 8))), fitted((200, 100))) == [(40, 10, 80, 25)]


@pytest.mark.parametrize(("size", "box"), [((200, 100), (70, 10, 90, 25)), ((100, 200), (20, 60, 40, 75))])
def test_a_blob_of_a_cropped_image(size, box):
    """The middle 100 pixels of 200 are seen: one input pixel is 5 by 5."""
    assert vlscore.find_boxes(blobs(((2, 5), (4, 8))), fitted(size, "crop")) == [box]


@pytest.mark.parametrize(("size", "box"), [((200, 100), (40, 30, 80, 60)), ((100, 200), (0, 80, 30, 110))])
def test_a_blob_of_a_padded_image(size, box):
    """50 pixels of padding stand before and after 100: one input pixel is 10 by 10."""
    assert vlscore.find_boxes(blobs(((8, 11), (4, 8))), fitted(size, "pad")) == [box]


def test_a_blob_that_reaches_into_the_padding_ends_at_the_image():
    assert vlscore.find_boxes(blobs(((2, 9), (4, 8))), fitted((200, 100), "pad")) == [(40, 0, 80, 40)]


def test_the_padding_makes_no_part_larger():
    """Ten pixels of the image, 0.5 % of it, hang on a wide strip of padding."""
    blob = blobs(((0, 5), (0, 20)), ((5, 6), (4, 5)))
    encoding = fitted((200, 100), "pad")
    assert vlscore.find_boxes(blob, encoding, min_area=0.004) == [(40, 0, 50, 10)]
    assert vlscore.find_boxes(blob, encoding, min_area=0.006) == []


def test_a_blob_in_the_padding_is_no_box():
    assert vlscore.find_boxes(blobs(((0, 4), (4, 8))), fitted((200, 100), "pad")) == []


def test_the_whole_image_can_be_a_box():
    part = blobs(((0, 20), (0, 19)))  # all but a column, since a constant map shows nothing
    assert vlscore.find_boxes(part, fitted((40, 20))) == [(0, 0, 38, 20)]


def test_an_image_of_one_pixel_has_a_box_of_one_pixel():
    assert vlscore.find_boxes(blobs(((2, 5), (4, 8))), fitted((1, 1))) == [(0, 0, 1, 1)]


def test_diagonal_neighbours_are_two_parts():
    diagonal = blobs(((0, 5), (0, 5)), ((5, 9), (5, 9)))
    assert vlscore.find_boxes(diagonal, fitted((20, 20))) == [(0, 0, 5, 5), (5, 5, 9, 9)]


def test_neighbours_across_an_edge_are_one_part():
    corner = blobs(((0, 5), (0, 5)), ((5, 9), (4, 9)))
    assert vlscore.find_boxes(corner, fitted((20, 20))) == [(0, 0, 9, 9)]


def test_the_part_of_largest_area_comes_first():
    """By the part's area, not its box's: the angle has the larger box, but fewer pixels."""
    angle = ((0, 1), (0, 9)), ((0, 9), (0, 1))
    found = vlscore.find_boxes(blobs(*angle, ((12, 18), (12, 18)), ((12, 14), (2, 4))), fitted((20, 20)))
    assert found == [(12, 12, 18, 18), (0, 0, 9, 9), (2, 12, 4, 14)]


def test_min_area_is_a_share_of_the_image():
    saliency = blobs(((0, 2), (0, 2)), ((10, 15), (10, 15)))  # 4 and 25 of 400 input pixels
    encoding = fitted((200, 100))
    assert len(vlscore.find_boxes(saliency, encoding, min_area=0.0099)) == 2
    assert vlscore.find_boxes(saliency, encoding, min_area=0.0101) == [(100, 50, 150, 75)]
    assert vlscore.find_boxes(saliency, encoding, min_area=0.07) == []


def test_min_area_of_a_cropped_image_counts_what_was_cut_off():
    """A crop shows half of a 2:1 image, so 4 of its 400 pixels are 0.5 % of the image."""
    saliency, encoding = blobs(((0, 2), (0, 2))), fitted((200, 100), "crop")
    assert len(vlscore.find_boxes(saliency, encoding, min_area=0.0049)) == 1
    assert vlscore.find_boxes(saliency, encoding, min_area=0.0051) == []


def test_parts_under_a_thousandth_are_dropped_by_default():
    saliency = blobs(((0, 1), (0, 1)), ((10, 15), (10, 15)), side=40)  # 1 of 1,600
    assert len(vlscore.find_boxes(saliency, fitted((40, 40), side=40))) == 1
    assert len(vlscore.find_boxes(saliency, fitted((40, 40), side=40), min_area=0.0005)) == 2


def test_the_threshold_is_a_share_of_the_maximum_above_the_minimum():
    """Values 2, 3 and 6 are 0, 0.25 and 1."""
    saliency = 2 + blobs(((0, 9), (0, 9))) + 3 * blobs(((0, 3), (0, 3)))
    encoding = fitted((20, 20))
    assert vlscore.find_boxes(saliency, encoding, 0.24) == [(0, 0, 9, 9)]
    assert vlscore.find_boxes(saliency, encoding, 0.26) == [(0, 0, 3, 3)]


@pytest.mark.parametrize("scale", [1e4, 1e-7])
def test_boxes_do_not_depend_on_the_saliency_s_scale(scale):
    saliency, encoding = torch.rand(5, 5, generator=torch.manual_seed(0)), fitted((64, 48))
    assert vlscore.find_boxes(saliency * scale, encoding) == vlscore.find_boxes(saliency, encoding) != []


def test_the_encoding_s_threshold_is_the_default():
    saliency = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
    found = vlscore.find_boxes(saliency, fitted((64, 64), threshold=0.8))
    assert found == vlscore.find_boxes(saliency, fitted((64, 64)), 0.8)
    assert found != vlscore.find_boxes(saliency, fitted((64, 64)), 0.5)


def test_an_absent_object_has_no_boxes():
    assert vlscore.find_boxes(None, fitted((64, 48))) == []


@pytest.mark.parametrize("value", [0.0, 0.1, 5.3, 123.4])
def test_a_constant_saliency_map_has_no_boxes(value):
    assert vlscore.find_boxes(torch.full((7, 7), value), fitted((64, 48), side=224)) == []


@pytest.mark.parametrize("saliency", [None, torch.eye(4)])
@pytest.mark.parametrize("threshold", [0, 1, -1, 2, float("nan"), float("inf")])
def test_a_threshold_out_of_range_is_told(threshold, saliency):
    with pytest.raises(vlscore.VLScoreError, match="threshold"):
        vlscore.find_boxes(saliency, fitted((64, 48)), threshold)


# ── localize ─────────────────────────────────────────────────────────────────────────────────────

CAT, TRUCK = "an image of a cat.", "an image of a fire truck."


@pytest.fixture(scope="module")
def encoding(lite0, chelsea):
    return vlscore.encode(lite0, chelsea, keep=64)


def equal(one, other):
    """Whether two Localizations are the same, bit for bit."""
    same = torch.equal(one.saliency, other.saliency)
    return same and dataclasses.replace(one, saliency=None) == dataclasses.replace(other, saliency=None)


def test_what_is_there_is_present(lite0, encoding):
    found = vlscore.localize(lite0, encoding, CAT)
    assert (found.prompt, found.present) == (CAT, True)
    assert found.score > found.base_score
    assert found.saliency.shape == (7, 7)
    assert found.boxes


def test_what_is_not_there_is_absent(lite0, encoding):
    found = vlscore.localize(lite0, encoding, TRUCK)
    assert (found.present, found.boxes, found.saliency) == (False, [], None)
    assert found.score <= found.base_score


@pytest.mark.parametrize("label", ["zebra", "dog", "steam locomotive", "castle", "tabby cat", "wooden chair"])
def test_present_means_that_the_score_beats_the_base_score(lite0, encoding, label):
    found = vlscore.localize(lite0, encoding, vlscore.TEMPLATE.format(label))
    s, base = vlscore.scores(encoding, lite0.encode_text([found.prompt])[0])
    assert (found.score, found.base_score) == (s.max(), base)
    assert found.present == (found.score > found.base_score) == (found.saliency is not None)


def test_an_encoding_may_stand_for_the_image(lite0, chelsea, encoding):
    assert equal(vlscore.localize(lite0, chelsea, CAT, keep=64), vlscore.localize(lite0, encoding, CAT))


def test_the_boxes_of_a_turned_photo_are_those_of_the_upright_one(lite0, chelsea, encoding, tmp_path):
    upright, exif = Image.open(chelsea), Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    found = vlscore.localize(lite0, tmp_path / "turned.png", CAT, keep=64)
    assert equal(found, vlscore.localize(lite0, encoding, CAT))


def test_the_model_s_temperature_and_threshold_are_the_default(lite0, encoding):
    found = vlscore.localize(lite0, encoding, CAT)
    own = {"temperature": lite0.temperature, "threshold": lite0.threshold}
    assert equal(found, vlscore.localize(lite0, encoding, CAT, **own))
    for other in ({"temperature": 1.0}, {"threshold": 0.7}):
        assert not equal(found, vlscore.localize(lite0, encoding, CAT, **own | other))


@pytest.mark.parametrize("temperature", [0, -0.1, float("nan"), float("inf")])
def test_a_temperature_out_of_range_is_told(lite0, encoding, temperature):
    with pytest.raises(vlscore.VLScoreError, match="temperature"):
        vlscore.localize(lite0, encoding, CAT, temperature)


def test_the_lowest_temperature_takes_the_best_map_alone(lite0, encoding):
    s, _ = vlscore.scores(encoding, lite0.encode_text([CAT])[0])
    found = vlscore.localize(lite0, encoding, CAT, temperature=1e-300)
    torch.testing.assert_close(found.saliency, encoding.maps[s.argmax()].relu())


# ── Box IoU ──────────────────────────────────────────────────────────────────────────────────────


def test_box_iou_equals_a_count_of_pixels():
    random = np.random.default_rng(0)

    def boxes():
        corners = random.integers(0, 40, (random.integers(1, 5), 2))
        return np.hstack([corners, corners + random.integers(1, 40, corners.shape)]).tolist()

    def pixels(box):
        shown = np.zeros((80, 80), bool)
        shown[box[1] : box[3], box[0] : box[2]] = True
        return shown

    for _ in range(1000):
        predicted, truth = boxes(), boxes()
        pairs = [(pixels(one), pixels(other)) for one in predicted for other in truth]
        expected = max((one & other).sum() / (one | other).sum() for one, other in pairs)
        assert vlscore.box_iou(predicted, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "iou"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1),
        ((0, 0, 10, 10), (2, 2, 7, 7), 25 / 100),
        ((0, 0, 10, 10), (5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0),
        ((0, 0, 10, 10), (10, 10, 20, 20), 0),
        ((0, 0, 10, 10), (30, 30, 40, 40), 0),
        ((0, 0, 1, 1), (0, 0, 1, 1), 1),
    ],
    ids=["identical", "contained", "half", "touching", "corner", "apart", "one pixel"],
)
def test_box_iou_of_two_boxes(one, other, iou):
    assert vlscore.box_iou([one], [other]) == vlscore.box_iou([other], [one]) == iou


@pytest.mark.parametrize(("predicted", "truth"), [([], []), ([(0, 0, 1, 1)], []), ([], [(0, 0, 1, 1)])])
def test_box_iou_with_an_empty_list_is_0(predicted, truth):
    assert vlscore.box_iou(predicted, truth) == 0


def test_box_iou_is_of_the_best_pair():
    far, near, exact = (50, 50, 60, 60), (0, 0, 10, 9), (20, 20, 30, 30)
    assert vlscore.box_iou([far, near, exact], [(0, 0, 10, 10), exact]) == 1


# ── Shares, baselines and peaks ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 1), (1, 1), (3, 7), (0, 500), (500, 500), (437, 500), (29, 23_000)]
)
def test_wilson_s_interval_equals_the_formula(hits, n):
    """Both ends are where the share is 1.96 standard errors of that end away (Wilson 1927)."""
    for end in vlscore.wilson(hits, n):
        distance, error = abs(hits / n - end), (end * (1 - end) / n) ** 0.5
        assert distance == pytest.approx(1.959964 * error, abs=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_what_is_no_share_is_told(hits, n):
    with pytest.raises(vlscore.VLScoreError, match="is not a share"):
        vlscore.wilson(hits, n)


def test_the_constant_box_is_centred():
    assert vlscore.constant_box(0.75, (400, 200)) == (50, 25, 350, 175)
    assert vlscore.constant_box(1.0, (400, 200)) == (0, 0, 400, 200)


def test_the_mean_map_is_the_positive_part_of_the_mean(lite0, encoding):
    expected = encoding.maps.double().numpy().mean(0).clip(0)
    np.testing.assert_allclose(vlscore.mean_map(encoding), expected, atol=1e-6)


@pytest.mark.parametrize("cell", [(0, 0), (0, 6), (6, 0), (6, 6), (3, 3), (2, 5)])
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_the_peak_is_where_the_enlarged_map_is_highest(lite0, encoding, cell, fit):
    one = dataclasses.replace(encoding, fit=vlscore.fit_region((451, 300), fit))
    spot = torch.zeros(7, 7)
    spot[cell] = 1.0
    heat = vlscore.heat_map(spot, 224)
    rows, columns = (heat == heat.max()).nonzero().double().mean(0)  # pixels of the input
    x0, y0, x1, y1 = one.fit.region
    expected = (x0 + (x1 - x0) * columns / 223, y0 + (y1 - y0) * rows / 223)
    assert vlscore.find_peak(spot, one) == pytest.approx([float(each) for each in expected], abs=1.5)


def test_a_point_is_in_the_first_box_that_holds_it():
    boxes = [(0, 0, 10, 10), (5, 5, 20, 20)]
    assert [vlscore.find_box_at(point, boxes) for point in ((1, 9), (7, 7), (15, 6), (15, 3))] == [
        0,
        0,
        1,
        None,
    ]


def test_mass_in_boxes_equals_a_count_of_pixels(encoding):
    boxes = [(0, 0, 451, 300), (100, 30, 200, 130), (0, 0, 1, 1)]
    found = vlscore.mass_in_boxes(encoding, boxes)
    every = vlscore.make_masks(encoding.maps, 224).double().numpy()
    expected = np.zeros((len(every), 3))
    for row in range(224):
        for column in range(224):
            x, y = (column + 0.5) * 451 / 224, (row + 0.5) * 300 / 224
            for n, (x0, y0, x1, y1) in enumerate(boxes):
                if x0 < x < x1 and y0 < y < y1:
                    expected[:, n] += every[:, row, column]
    total = every.sum((1, 2))
    alive = total > 0
    np.testing.assert_allclose(found[alive].numpy(), expected[alive] / total[alive, None], atol=1e-4)
    assert (found[~alive] == 0).all()
