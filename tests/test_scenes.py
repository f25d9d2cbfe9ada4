"""Drawn scenes: same seed, same bytes; and the annotations tell the truth about the pixels."""

import colorsys
import math

import draw_scenes
import numpy as np
import pytest
from PIL import Image

import vlscore
from vlscore_lib import scenes

ANY = (224, 224)


@pytest.fixture
def plain(monkeypatch):
    """Scenes on flat grey, without camera: what differs from grey is an object."""
    monkeypatch.setattr(
        scenes, "background", lambda rng, size: np.full((size[1], size[0], 3), 128, np.float32)
    )
    monkeypatch.setattr(
        scenes, "develop", lambda rng, scene: Image.fromarray(scene.clip(0, 255).astype(np.uint8))
    )


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def draw(number, objects=None, size=ANY):
    return scenes.draw_scene(scenes.scene_rng(5, number), size, objects)


# ── Files ────────────────────────────────────────────────────────────────────────────────────────


def test_two_runs_with_one_seed_give_the_same_bytes(tmp_path):
    for name in ("first", "second"):
        assert draw_scenes.main([str(tmp_path / name), "--count", "6", "--seed", "3"]) == 0
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_a_scene_depends_on_seed_and_number_alone(tmp_path):
    for name, count, seed in (("few", 2, 3), ("many", 4, 3), ("other", 2, 4)):
        scenes.write_scenes(tmp_path / name, count, seed, ANY)
    few, many, other = (files(tmp_path / name) for name in ("few", "many", "other"))
    photos = [path for path in few if path.suffix in (".JPEG", ".xml")]
    assert len(photos) == 4
    assert all(few[path] == many[path] for path in photos)
    assert not any(few[path] == other[path] for path in photos)


def test_the_layout_is_imagenet_s(tmp_path):
    scenes.write_scenes(tmp_path / "set", 12, 1, (200, 150))
    photos = vlscore.read_dataset(tmp_path / "set").photos
    names = vlscore.read_classes(tmp_path / "set" / "LOC_synset_mapping.txt")
    assert names == dict(scenes.classes())
    rows = (tmp_path / "set" / "LOC_val_solution.csv").read_text().splitlines()
    assert rows[0] == "ImageId,PredictionString"
    assert len(photos) == len(rows) - 1 == 12
    for number, (photo, row) in enumerate(zip(photos, rows[1:]), start=1):
        assert photo.path.name == f"scenes_val_{number:08}.JPEG"
        with Image.open(photo.path) as image:
            assert (image.format, image.size) == ("JPEG", (200, 150))
        name, _, boxes = row.partition(",")
        assert name == photo.path.stem
        words = boxes.split()
        inclusive = [f"{x0:.0f} {y0:.0f} {x1 - 1:.0f} {y1 - 1:.0f}" for x0, y0, x1, y1 in photo.boxes]
        assert [" ".join(words[n + 1 : n + 5]) for n in range(0, len(words), 5)] == inclusive
        assert set(words[::5]) == {photo.label}


def test_nothing_is_left_when_drawing_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(scenes, "annotation", fail)
    assert draw_scenes.main([str(tmp_path / "set"), "--count", "2"]) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--count", "0"], "--count: '0' is not a whole number of 1 or more"),
        (["--count", "many"], "--count: 'many'"),
        (["--seed", "-1"], "--seed"),
        (["--size", "20"], "--size: '20' is not a size"),
        (["--size", "200x"], "--size: '200x' is not a size"),
        (["--objects", "4"], "--objects"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_a_bad_option_is_told_in_a_line(tmp_path, capsys, arguments, said):
    assert draw_scenes.main([str(tmp_path / "set"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("draw_scenes.py: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_scenes_of_two_seeds_are_not_mixed(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    assert draw_scenes.main([str(tmp_path / "set"), "--count", "1"]) == 0  # an empty folder will do
    before = files(tmp_path / "set")
    assert draw_scenes.main([str(tmp_path / "set"), "--count", "1", "--seed", "2"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert files(tmp_path / "set") == before


# ── Classes ──────────────────────────────────────────────────────────────────────────────────────


def test_classes_are_every_colour_of_every_shape():
    classes = scenes.classes()
    numbers, names = zip(*classes)
    assert len(classes) == len(scenes.SHAPES) * len(scenes.COLOURS) == 80
    assert list(numbers) == sorted(set(numbers))
    assert all(len(each) in (2, 3) for each in names)
    every = [name for each in names for name in each]
    assert len(set(every)) == len(every)


def test_other_objects_share_the_shape_or_the_colour_of_the_first():
    shared = []
    for number in range(300):
        first, second, third = scenes.choose_objects(scenes.scene_rng(1, number), 3)
        assert first != second
        assert third != second
        shared.append(first[0] == second[0] or first[1] == second[1])
    assert 0.75 < np.mean(shared) < 0.95


# ── Pixels ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", range(40))
def test_the_box_holds_the_object_and_nothing_around_it(plain, number):
    image, [(_, (x0, y0, x1, y1))] = draw(number, objects=1)
    covered = (np.abs(np.asarray(image).astype(int) - 128) > 0).any(-1)
    rows, columns = covered.any(1).nonzero()[0], covered.any(0).nonzero()[0]
    # An edge pixel less than half covered is cut off; one that is grey itself is not seen here.
    assert abs(columns[0] - x0) <= 1
    assert abs(columns[-1] + 1 - x1) <= 1
    assert abs(rows[0] - y0) <= 1
    assert abs(rows[-1] + 1 - y1) <= 1


@pytest.mark.parametrize("number", range(40))
def test_the_label_tells_the_colour(plain, number):
    """The named hue nearest to that of the object's most saturated pixels."""
    image, [(index, _)] = draw(number, objects=1)
    pixels = np.asarray(image).reshape(-1, 3) / 255.0
    colourful = sorted((colorsys.rgb_to_hsv(*pixel) for pixel in pixels), key=lambda hsv: -hsv[1])[:200]
    hue = 360 * np.median([(h + 0.05) % 1 for h, _, _ in colourful]) - 18
    distance = {name: abs((hue - each[0] + 180) % 360 - 180) for name, each in scenes.COLOURS.items()}
    names = scenes.classes()[index][1]
    assert names[0].split()[0] == min(distance, key=distance.get)


AREAS = {  # of the unit circle's shapes, by formula
    "circle": math.pi,
    "ring": math.pi * (1 - 0.55**2),
    "square": (2 * 0.72) ** 2,
    "triangle": 3 * math.sqrt(3) / 4,
    "cross": 4 * (2 * 0.32 * (0.95 - 0.32)) + (2 * 0.32) ** 2,
    "star": 10 * 0.5 * 0.4 * math.sin(math.pi / 5),
}


@pytest.mark.parametrize("shape", AREAS)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_the_silhouette_has_the_shape_s_area(shape, angle):
    mask = np.asarray(scenes.silhouette(shape, 60.0, angle)) / 255
    assert mask.sum() / 60**2 == pytest.approx(AREAS[shape], rel=0.03)


def test_every_shape_is_its_own():
    """No two silhouettes agree at any rotation: else two classes would look the same."""
    turns = np.linspace(0, 2 * math.pi, 36, endpoint=False)

    def centred(shape, angle):
        mask = scenes.silhouette(shape, 30.0, angle)
        canvas = Image.new("L", (64, 64))
        canvas.paste(mask, ((64 - mask.width) // 2, (64 - mask.height) // 2))
        return np.asarray(canvas) > 127

    upright = {shape: centred(shape, 0.0) for shape in scenes.SHAPES}
    for shape in scenes.SHAPES:
        turned = [centred(shape, angle) for angle in turns]
        for other in set(scenes.SHAPES) - {shape}:
            overlap = max((each & upright[other]).sum() / (each | upright[other]).sum() for each in turned)
            assert overlap < 0.92, (shape, other)


@pytest.mark.parametrize("objects", [1, 2, 3])
@pytest.mark.parametrize("size", [ANY, (320, 120), (64, 64)])
def test_objects_are_inside_close_and_hardly_overlap(objects, size):
    gaps = []
    for number in range(20):
        image, found = draw(number, objects, size)
        assert image.size == size
        assert len(found) == objects
        boxes = np.array([box for _, box in found])
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes[:, 2:] <= size).all()
        for n, box in enumerate(boxes[1:], start=1):
            shared = np.minimum(box[2:], boxes[:n, 2:]) - np.maximum(box[:2], boxes[:n, :2])
            areas = np.prod(boxes[: n + 1, 2:] - boxes[: n + 1, :2], 1)
            overlap = shared.clip(0).prod(1) / np.minimum(areas[:n], areas[n])
            assert overlap.max() < 0.15
            gaps.append((-shared).max(1).min())
    # Near objects run into one another on a coarse map, unless the prompt tells them apart.
    assert objects == 1 or max(gaps) <= 0


def test_same_scenes_have_one_class(tmp_path):
    assert draw_scenes.main([str(tmp_path / "same"), "--count", "4", "--objects", "3", "--same"]) == 0
    for photo in vlscore.read_dataset(tmp_path / "same").photos:
        assert [label for label, _ in photo.objects] == [photo.label] * 3
        assert len(photo.boxes) == 3
