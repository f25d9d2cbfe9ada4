"""What a prompt may hold."""

import pytest
import torch
from models_helpers import PROMPTS

import vlscore


@pytest.mark.parametrize("prompt", ["", " ", "\t\n", "\u2003"])
def test_an_empty_prompt_is_refused(model, prompt):
    with pytest.raises(vlscore.VLScoreError, match="empty"):
        model.encode_text(["a cat", prompt])


def test_a_nul_character_is_refused(model):
    with pytest.raises(vlscore.VLScoreError, match="NUL"):
        model.encode_text(["a c\0at"])


def test_77_tokens_fit_and_78_are_refused(model):
    """75 words of one token each, a start and an end."""
    assert model.encode_text(["cat " * 75]).isfinite().all()
    with pytest.raises(vlscore.VLScoreError, match="78 tokens, at most 77"):
        model.encode_text(["cat " * 76])


@pytest.mark.parametrize(
    "prompt", ["🐱", "a 👩‍👩‍👧 family", "猫の写真", "an image\nof a cat", "<b>&amp;</b>", "%s {}"]
)
def test_unusual_prompts_are_embedded(model, prompt):
    found = model.encode_text([prompt])
    assert found.isfinite().all()
    torch.testing.assert_close(found.norm(dim=1), torch.ones(1))


def test_half_a_surrogate_pair_is_embedded_or_refused(model):
    """What Python makes of command-line bytes that are no UTF-8."""
    try:
        assert model.encode_text(["a \udcff cat"]).isfinite().all()
    except vlscore.VLScoreError as error:
        assert "\n" not in str(error)


def test_a_prompt_s_embedding_does_not_depend_on_the_others(model):
    alone = torch.cat([model.encode_text([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(model.encode_text(PROMPTS), alone, atol=1e-6, rtol=0)
