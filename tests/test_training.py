"""Training of the scenes models: the loss by its formula, and runs that stop and go on."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
import train_scenes
from train_scenes import Recipe

import vlscore
from vlscore_lib import scenes
from vlscore_lib.models import facts

TINY = Recipe(scenes=16, cycles=(4,), batch=4, rate=1e-3, chunk=8, every=2)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer held-out scenes, since drawing them takes longer than the steps."""
    monkeypatch.setattr(train_scenes, "HELD_OUT", 10)


# ── Captions and loss ────────────────────────────────────────────────────────────────────────────


def test_captions_fit_the_classes_that_have_their_words():
    classes, shapes, colours = train_scenes.caption_groups()
    assert torch.equal(classes[1], torch.eye(80).bool())
    for index, (_, names) in enumerate(scenes.classes()):
        colour, shape = names[0].split()
        assert classes[0][index] == names
        fitting = [shapes[0][n][0] for n in shapes[1][index].nonzero()[:, 0]]
        assert fitting == [shape]
        fitting = [colours[0][n][0].split()[0] for n in colours[1][index].nonzero()[:, 0]]
        assert fitting == [colour]


def test_wordings_are_drawn_anew_and_repeat_with_the_seed():
    names = [["red circle", "red disc"], ["square", "box"]]
    drawn = {tuple(train_scenes.wordings(torch.Generator().manual_seed(n), names)) for n in range(50)}
    assert len(drawn) > 30
    for first, second in drawn:
        assert any(template.format(name) == first for template in train_scenes.TEMPLATES for name in names[0])
        assert any(
            template.format(name) == second for template in train_scenes.TEMPLATES for name in names[1]
        )
    again = [train_scenes.wordings(torch.Generator().manual_seed(7), names) for _ in range(2)]
    assert again[0] == again[1]


def test_the_loss_of_pairs_is_clip_s():
    """With one right caption a scene it is the symmetric cross-entropy (Radford et al. 2021, figure 3)."""
    logits = 5 * torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    right = torch.arange(6)
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    torch.testing.assert_close(train_scenes.contrastive_loss(logits, torch.eye(6).bool()), expected)


def test_the_loss_shares_the_target_among_right_captions():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]])
    fits = torch.tensor([[True, True, False], [False, True, False]])
    rows = logits.exp() / logits.exp().sum(1, keepdim=True)
    columns = logits.exp() / logits.exp().sum(0, keepdim=True)
    by_scene = (-(rows[0, 0].log() + rows[0, 1].log()) / 2 - rows[1, 1].log()) / 2
    by_caption = (-columns[0, 0].log() - (columns[0, 1].log() + columns[1, 1].log()) / 2) / 2
    expected = (by_scene + by_caption) / 2  # the third caption fits no scene and has no term
    torch.testing.assert_close(train_scenes.contrastive_loss(logits, fits), expected)


def test_the_rate_warms_up_and_falls_in_each_cycle():
    recipe = dataclasses.replace(TINY, cycles=(1000, 500), rate=1e-3)
    rates = [train_scenes.rate_at(step, recipe) for step in range(1500)]
    assert rates[0] < 1e-5
    assert max(rates) == pytest.approx(1e-3, rel=0.1)
    assert 150 <= rates.index(max(rates)) <= 250
    assert rates[999] < 1e-8
    assert rates[1000] == pytest.approx(0.5e-3)
    assert rates[1250] == pytest.approx(0.25e-3)
    assert rates[1499] < 1e-8


def test_turning_and_mirroring_moves_pixels_and_changes_none():
    pixels = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    seen = {
        tuple(train_scenes.turn_and_mirror(pixels, quarters, mirrored).flatten().tolist())
        for quarters in range(4)
        for mirrored in (False, True)
    }
    assert len(seen) == 8  # four turns, mirrored or not
    assert all(sorted(each) == sorted(pixels.flatten().tolist()) for each in seen)


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "guided"), [("rn", 0), ("vit", 3)])
def test_a_stopped_run_ends_in_the_same_weights(tmp_path, kind, guided):
    recipe = dataclasses.replace(TINY, guided=guided)
    whole, curve = train_scenes.train(kind, recipe, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_scenes, "caption_loss", stop_after(3))
        train_scenes.train(kind, recipe, tmp_path / "stopped")
    resumed, resumed_curve = train_scenes.train(kind, recipe, tmp_path / "stopped")
    assert curve == resumed_curve
    assert [step for step, _, _ in curve] == [2, 4]
    for (name, ours), theirs in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(ours, theirs), name


def stop_after(calls):
    caption_loss, left = train_scenes.caption_loss, iter(range(calls))

    def stopping(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return caption_loss(*arguments)

    return stopping


def test_released_weights_are_the_trained_ones(tmp_path, monkeypatch):
    """In half precision; and captions are embedded as in training, though most words are left out."""
    torch.manual_seed(0)
    clip = train_scenes.build("vit").eval()
    for block in clip.visual.transformer.resblocks:
        block.attn.in_proj_bias.data.normal_()
    (tmp_path / "data" / "models").mkdir(parents=True)
    train_scenes.release(clip, tmp_path / "data" / "models" / "scenes-vit.safetensors")
    monkeypatch.setattr(facts, "__file__", str(tmp_path / "vlscore_lib" / "models" / "facts.py"))
    model = vlscore.load_model("scenes-vit", "cpu")
    assert model.input_size == 80
    pixels = torch.randn(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    expected = vlscore.unit(clip.encode_image(pixels))
    torch.testing.assert_close(model.encode_image(pixels), expected, atol=3e-3, rtol=0)
    captions = ["an image of a red circle.", "there is a scarlet hoop here.", "the pink thing"]
    expected = vlscore.unit(clip.encode_text(vlscore.import_clip().tokenize(captions, 16)))
    torch.testing.assert_close(model.encode_text(captions), expected, atol=3e-3, rtol=0)
    other = model.encode_text(["an image of a cat."])  # words that it never saw
    assert other.isfinite().all()


def test_a_missing_or_damaged_file_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "__file__", str(tmp_path / "vlscore_lib" / "models" / "facts.py"))
    with pytest.raises(vlscore.VLScoreError, match=r"scenes-rn\.safetensors cannot be loaded"):
        vlscore.load_model("scenes-rn")
    (tmp_path / "data" / "models").mkdir(parents=True)
    (tmp_path / "data" / "models" / "scenes-rn.safetensors").write_bytes(b"not weights")
    with pytest.raises(vlscore.VLScoreError, match=r"scenes-rn\.safetensors cannot be loaded") as error:
        vlscore.load_model("scenes-rn")
    assert "\n" not in str(error.value)
