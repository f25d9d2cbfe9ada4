"""Classes are embedded in batches as one by one, and many are kept on disk."""

import pytest
import torch
import torch.nn.functional as F

import vlscore
from vlscore_lib.models import class_texts

NAMES = [["cat"], ["a long name of a dog", "dog"], ["cup", "mug", "beaker"]]
TEMPLATES = ("an image of a {}.", "{}")


@pytest.mark.parametrize("name", ["lite0", "rn", "vit"])
def test_classes_together_are_those_one_by_one(request, name):
    model = request.getfixturevalue(name)
    found = vlscore.class_embeddings(model, NAMES, TEMPLATES)
    for row, names in zip(found, NAMES):
        prompts = [template.replace("{}", each) for each in names for template in TEMPLATES]
        every = torch.cat([model.encode_text([prompt]) for prompt in prompts])
        expected = F.normalize(every.double().mean(0), dim=-1).float()
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(row, vlscore.class_embedding(model, names, TEMPLATES), atol=1e-6, rtol=0)


def test_openai_s_own_text_encoder_gives_the_same(rn):
    """It reads all 77 places of the context; ours ends with the longest text."""
    prompts = ["cat", "an image of a cup.", "word " * 70]
    tokens = vlscore.import_clip().tokenize(prompts)
    with torch.inference_mode():
        expected = F.normalize(rn.clip.encode_text(tokens), dim=-1)
    torch.testing.assert_close(rn.encode_text(prompts), expected, atol=1e-6, rtol=0)


def test_prompts_keep_their_order_over_the_batches(rn):
    prompts = [f"{'word ' * (n % 7)}{n}" for n in range(150)]
    found = rn.encode_text(prompts)
    for n in (0, 63, 64, 99, 149):
        torch.testing.assert_close(found[n], rn.encode_text([prompts[n]])[0], atol=1e-6, rtol=0)


def test_many_classes_are_kept_for_this_model_and_these_words(rn, vit, tmp_path, monkeypatch):
    monkeypatch.setenv("VLSCORE_CACHE", str(tmp_path))
    names = [[f"thing {n}"] for n in range(class_texts.MANY_PROMPTS)]
    first = vlscore.class_embeddings(rn, names)
    with monkeypatch.context() as patch:
        patch.setattr(type(rn), "embed_texts", None)  # so that nothing can be embedded
        assert torch.equal(vlscore.class_embeddings(rn, names), first)
        for model, other in ((rn, [["another"], *names[1:]]), (vit, names)):
            with pytest.raises(TypeError):
                vlscore.class_embeddings(model, other)
    assert len(list(tmp_path.iterdir())) == 1
    vlscore.class_embeddings(rn, names[1:])  # few are not kept
    assert len(list(tmp_path.iterdir())) == 1
