"""The two CLIPs in data/models, from text to boxes, on scenes drawn for these tests."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import vlscore
import vlscore_cli
from vlscore_lib import scenes

MODELS = Path(__file__).parents[1] / "data" / "models"
# Well below what the card says, so that a few scenes more or less do not decide.
LEAST_TOP1 = {"scenes-rn": 0.95, "scenes-vit": 0.80}
LAYERS = {"scenes-rn": "layer3", "scenes-vit": None}


@pytest.fixture(scope="module", params=list(vlscore.SCENES_MODELS))
def model(request):
    return vlscore.load_model(request.param, "cpu")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single") / "scenes"
    scenes.write_scenes(folder, 100, 101, (224, 224), objects=1)
    return vlscore.read_dataset(folder).photos


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "scenes"
    scenes.write_scenes(folder, 16, 102, (224, 224), objects=2)
    return vlscore.read_dataset(folder).photos


def class_embeddings(model):
    return {wnid: vlscore.class_embedding(model, names) for wnid, names in scenes.classes()}


@pytest.mark.parametrize("name", vlscore.SCENES_MODELS)
def test_the_file_is_small_and_the_card_names_it(name):
    content = (MODELS / f"{name}.safetensors").read_bytes()
    assert len(content) <= 10e6
    assert hashlib.sha256(content).hexdigest() in (MODELS / "README.md").read_text()


def test_it_is_a_clip_of_openai_s_classes(model):
    clip = vlscore.import_clip().model
    assert isinstance(model.clip, clip.CLIP)
    encoder = clip.VisionTransformer if model.name == "scenes-vit" else clip.ModifiedResNet
    assert isinstance(model.visual, encoder)
    side = model.feature_maps(torch.zeros(1, 3, model.input_size, model.input_size)).shape[-1]
    assert side >= (10 if model.is_vit else 5)


def test_zero_shot_classification_of_single_objects(model, single):
    texts = class_embeddings(model)
    pixels = torch.stack([model.preprocess(photo.path) for photo in single])
    scores = model.encode_image(pixels) @ torch.stack(list(texts.values())).T
    first = [list(texts)[n] for n in scores.argmax(1)]
    right = sum(found == photo.label for found, photo in zip(first, single))
    print(f"{model.name}: top-1 {right} of {len(single)}")
    assert right >= LEAST_TOP1[model.name] * len(single)


def test_the_prompt_decides_where_the_saliency_is(model, pairs):
    """Asked for one of two objects, the peak is on it, more often than on the other."""
    texts = class_embeddings(model)
    asked = other = 0
    for photo in pairs:
        encoding = vlscore.encode(model, photo.path, LAYERS[model.name], keep=64)
        labels = [label for label, _ in photo.objects]
        for label, rest in (labels, labels[::-1]):
            found = vlscore.saliency(encoding, texts[label], model.temperature)
            if found is None:
                continue
            boxes = [photo.boxes_of(each)[0] for each in (label, rest)]
            hit = vlscore.find_box_at(vlscore.find_peak(found, encoding), boxes)
            asked, other = asked + (hit == 0), other + (hit == 1)
    print(f"{model.name}: peak on the asked object {asked}, on the other {other} of {2 * len(pairs)}")
    assert asked > 2 * other


def test_text_to_boxes_on_the_command_line(model, single, capsys):
    photo = single[0]
    name = dict(scenes.classes())[photo.label][0]
    arguments = ["localize", str(photo.path), vlscore.TEMPLATE.format(name), "--model", model.name, "--json"]
    # The weighted sum of a ViT's block output may be negative everywhere, which leaves no box;
    # attention is positive.
    arguments += ["--maps", "attention"] if model.is_vit else ["--layer", "layer3"]
    assert vlscore_cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == model.name
    assert found["results"][0]["present"]
    assert found["results"][0]["boxes"]


def test_words_that_it_never_saw_are_told(model, single, capsys):
    assert model.unknown_words("an image of a scarlet hoop.") == []
    assert model.unknown_words("an image of a fluffy red cat.") == ["fluffy", "cat."]
    arguments = ["localize", str(single[0].path), "an image of a cat.", "--model", model.name, "--keep", "4"]
    assert vlscore_cli.main(arguments) == 0
    assert f"{model.name} does not know 'cat.': left out of the prompt" in capsys.readouterr().err
