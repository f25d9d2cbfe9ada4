"""The book's diagrams: the stored files are the drawn ones, text is legible, the worked numbers are right."""

import re
import xml.etree.ElementTree as ElementTree
from contextlib import ExitStack
from functools import cache
from itertools import combinations
from pathlib import Path

import diagrams
import diagrams_results
import draw_diagrams
import matplotlib
import pytest
import torch
from diagrams_models import STAGES
from diagrams_worked import WorkedExample
from PIL import ImageFont

import vlscore

DRAWN = draw_diagrams.draw_all()
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SVG = "{http://www.w3.org/2000/svg}"
every_drawing = pytest.mark.parametrize("name", DRAWN)


# ── The files ────────────────────────────────────────────────────────────────────────────────────


def test_the_stored_files_are_what_the_script_draws(tmp_path):
    draw_diagrams.main(["--out", str(tmp_path)])
    stored = {path.name: path.read_bytes() for path in draw_diagrams.OUT.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == stored
    assert draw_diagrams.draw_all() == DRAWN


@every_drawing
def test_a_drawing_is_an_image_with_a_title_and_a_description(name):
    root = read(name)
    assert root.get("role") == "img"
    assert root.get("viewBox").startswith("0 0 960 ")
    named = {each.get("id"): each.text for each in root if each.tag in (f"{SVG}title", f"{SVG}desc")}
    assert root.get("aria-labelledby").split() == list(named)
    assert all(len(text) > 20 for text in named.values())


@cache
def read(name):
    return ElementTree.fromstring(DRAWN[name])


# ── The text: its place, its size and its contrast ───────────────────────────────────────────────


@cache
def font(size, is_bold, is_italic):
    style = ("Bold" if is_bold else "") + ("Oblique" if is_italic else "")
    return ImageFont.truetype(FONTS / f"DejaVuSans{'-' * bool(style)}{style}.ttf", size)


def runs(element):
    """The pieces of a text: words, size, bold, italic."""
    classes = element.get("class").split()
    (size,) = (diagrams.SIZES[each] for each in classes if each in diagrams.SIZES)
    is_bold = bool({"head", "bold"} & set(classes))
    if element.text:
        yield element.text, size, is_bold, False
    for piece in element:
        yield piece.text, float(piece.get("font-size", size)), is_bold, piece.get("class") == "italic"


def extent(element):
    """The box of a text, in DejaVu Sans, which is wider than most: x0, y0, x1, y1."""
    pieces = list(runs(element))
    wide = sum(font(size, *style).getlength(words) for words, size, *style in pieces)
    x, y, size = float(element.get("x")), float(element.get("y")), pieces[0][1]
    x -= {"middle": wide / 2, "end": wide, None: 0}[element.get("text-anchor")]
    return x, y - 0.75 * size, x + wide, y + 0.22 * size


def words_of(element):
    return "".join(element.itertext())


def texts(name):
    return list(read(name).iter(f"{SVG}text"))


def shapes_of(element):
    """The boxes of the shapes of an element: x0, y0, x1, y1."""
    if element.tag == f"{SVG}rect":
        x, y, w, h = (float(element.get(key, 0)) for key in ("x", "y", "width", "height"))
        return [(x, y, x + w, y + h)]
    if element.tag == f"{SVG}path":  # cells
        found = re.findall(r"M(\S+) (\S+?)h(\S+?)v(\S+?)h\S+?z", element.get("d"))
        return [(x, y, x + w, y + h) for x, y, w, h in (map(float, each) for each in found)]
    if element.tag == f"{SVG}polygon":
        x, y = zip(*(map(float, each.split(",")) for each in element.get("points").split()))
        return [(min(x), min(y), max(x), max(y))]
    return []


@cache
def backgrounds(name):
    """Of each text: the shape that was drawn last below its centre, and that shape's box."""
    drawn, found = [], []
    for element in read(name).iter():
        if element.tag == f"{SVG}text":
            x0, y0, x1, y1 = extent(element)
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            around = [
                each for each in drawn if each[1][0] <= x <= each[1][2] and each[1][1] <= y <= each[1][3]
            ]
            found.append((element, *around[-1]))
        elif element.get("fill") != "none" and "line" not in (element.get("class") or "").split():
            drawn += [(element, box) for box in shapes_of(element)]
    return found


@every_drawing
def test_a_text_lies_within_what_it_is_written_on(name):
    outside = []
    for text, _, box in backgrounds(name):
        x0, y0, x1, y1 = extent(text)
        if not (box[0] + 2 <= x0 and box[1] <= y0 and x1 <= box[2] - 2 and y1 <= box[3]):
            outside.append(words_of(text))
    assert outside == []


@every_drawing
def test_no_text_runs_into_another(name):
    placed = [(words_of(text), extent(text)) for text in texts(name)]
    overlapping = [
        (one, other)
        for (one, a), (other, b) in combinations(placed, 2)
        if min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    ]
    assert overlapping == []


@every_drawing
def test_text_is_large_enough_at_700_pixels(name):
    sizes = [[size for _, size, *_ in runs(text)] for text in texts(name)]
    assert min(map(max, sizes)) >= 15
    assert min(map(min, sizes)) >= 12  # of a subscript


def colours(name):
    """The fills of the classes, of a light and of a dark page."""
    light, dark = read(name).find(f"{SVG}style").text.split("@media (prefers-color-scheme: dark)")
    return [dict(re.findall(r"\.([\w-]+)\{fill:(#\w{6})\}", each)) for each in (light, dark)]


def fill_of(element, classes):
    names = [each for each in (element.get("class") or "").split() if each in classes]
    return element.get("fill") or classes[names[-1]]


def luminance(colour):
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@every_drawing
def test_text_has_contrast_on_light_and_on_dark_pages(name):
    for classes in colours(name):
        for text, shape, _ in backgrounds(name):
            assert contrast(fill_of(text, classes), fill_of(shape, classes)) >= 4.5, words_of(text)


@every_drawing
def test_the_two_pages_have_the_same_classes(name):
    light, dark = colours(name)
    assert light.keys() == dark.keys()


# ── The numbers of the models ────────────────────────────────────────────────────────────────────


@pytest.fixture
def model_parts():
    """CLIP's own model.py, on a device that knows shapes alone."""
    parts = vlscore.import_clip().model
    with torch.device("meta"):
        yield parts


def test_the_drawn_shapes_of_rn50_are_clip_s(model_parts):
    depths = tuple(blocks for *_, blocks in STAGES)
    visual = model_parts.ModifiedResNet(depths, output_dim=1024, heads=32, input_resolution=224, width=64)
    with ExitStack() as stack:
        seen = {name: stack.enter_context(vlscore.tapped(part)) for name, part in visual.named_children()}
        embedding = visual(torch.zeros(1, 3, 224, 224))
    written = [words_of(text) for text in texts("resnet.svg")]
    for name, part in seen.items():
        if name == "avgpool" or name.startswith("layer"):
            assert "×".join(map(str, part.output.shape[1:])) in written
    assert str(embedding.shape[1]) in written


def test_the_drawn_sizes_of_vit_b_16_are_clip_s(model_parts):
    visual = model_parts.VisionTransformer(224, 16, width=768, layers=1, heads=768 // 64, output_dim=512)
    with vlscore.tapped(visual.transformer) as seen:
        visual(torch.zeros(1, 3, 224, 224))
    tokens, _, width = seen.output.shape
    heads = visual.transformer.resblocks[0].attn.num_heads
    words = f"ViT-B/16: d = {width}, {heads} heads, 14×14 = {tokens - 1} patches"
    assert words in [words_of(text) for text in texts("vit_block.svg")]


# ── The worked example ───────────────────────────────────────────────────────────────────────────

GIVEN = WorkedExample()


@pytest.fixture(scope="module")
def encoding():
    """The example as an encoding: the prompt is (1, 0), and each embedding has its cosine with it."""
    cosines = torch.tensor([*GIVEN.scores, GIVEN.base])
    embeddings = torch.stack([cosines, (1 - cosines**2).sqrt()], 1)
    return vlscore.Encoding(
        model="by hand",
        layer="layer4",
        kind="activation",
        input_size=2,
        fit=vlscore.fit_region((100, 100), "squash"),
        maps=torch.tensor(GIVEN.maps).float(),
        indices=torch.arange(3),
        mask_embeddings=embeddings[:-1],
        base_embedding=embeddings[-1],
        image_embedding=embeddings[0],
        temperature=GIVEN.temperature,
        threshold=GIVEN.threshold,
    )


def two_decimals(values):
    return [f"{value:.2f}" for value in values.flatten().tolist()]


def test_the_drawn_numbers_are_those_of_the_method(encoding):
    prompt = torch.tensor([1.0, 0.0])
    weights = vlscore.weights(encoding, prompt, GIVEN.temperature)
    saliency = vlscore.saliency(encoding, prompt, GIVEN.temperature)
    (box,) = vlscore.find_boxes(saliency, encoding)
    iou = vlscore.box_iou([box], [diagrams.CAR])
    masks = vlscore.make_masks(encoding.maps, 2)
    written = [words_of(text) for text in texts("worked_example.svg")]
    joined = "|".join(written)
    for n, (map_, mask, score) in enumerate(zip(GIVEN.maps, masks, GIVEN.scores)):
        row = [f"A{n + 1}", *map(str, sum(map_, ())), *two_decimals(mask), f"s{n + 1} = {score:.2f}"]
        assert "|".join(row) in joined
        assert (f"w{n + 1} = {weights[n]:.2f}" in written) == (score > GIVEN.base)
    assert "|".join(["=", *two_decimals(saliency)]) in joined
    assert "|".join(["min-max", *two_decimals(vlscore.heat_map(saliency, 2))]) in joined
    assert f"({', '.join(map(str, box))})" in written
    assert f"IoU with the car: {iou:.2f}" in written
    assert (box, iou) == (GIVEN.box, pytest.approx(GIVEN.iou))


def test_a_reader_gets_the_same_from_rounded_weights(encoding):
    weights = [0.69, 0.31, 0]
    sums = torch.einsum("k,khw->hw", torch.tensor(weights), encoding.maps)
    assert two_decimals(sums) == two_decimals(torch.tensor(GIVEN.saliency))


def test_the_description_has_the_numbers_of_the_drawing():
    words = read("worked_example.svg").find(f"{SVG}desc").text
    numbers = [*(f"{each:.2f}" for each in (*GIVEN.scores, GIVEN.base, *GIVEN.weights[:2])), str(GIVEN.box)]
    assert [each for each in numbers if each not in words] == []


def test_the_overview_has_readme_s_results():
    """By the rows of README's table, in percent."""
    found = diagrams_results.read_results()
    sets = {"raccoons": "Photos of raccoons, not tuned on"}
    sets |= {"drawn scenes": "Drawn scenes, scenes-rn, layer4", "the same": "Drawn scenes, scenes-vit"}
    sets |= {"finer layer": "Drawn scenes, scenes-rn, layer3"}
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for words, name in sets.items():
        (row,) = re.findall(rf"^\|[^|]*\|[^|]*{words}[^|]*\|(.*)\|$", readme, re.MULTILINE)
        shown = [float(cell.split("(")[0].strip(" *")) for cell in row.split("|")]
        values = [found[name][method]["value"] for method in ("constant", "plain", "refined")]
        assert shown == [pytest.approx(100 * value, abs=0.051) for value in values]
