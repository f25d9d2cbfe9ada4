"""Words: the prompts, and the sentences about their answers."""

from __future__ import annotations

import re
import string

import vlscore

MOST_PROMPTS = 10


def prompts_of(text: str) -> list[str]:
    """One prompt for each line, without repetitions.

    Raises:
        vlscore.VLScoreError: none, or too many.
    """
    prompts = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise vlscore.VLScoreError("there is no prompt: write what to look for, one thing per line")
    if len(prompts) > MOST_PROMPTS:
        raise vlscore.VLScoreError(f"there are {len(prompts)} prompts: write {MOST_PROMPTS} at most")
    return prompts


def plain(text: str) -> str:
    """Escape text so that Markdown shows it unchanged."""
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", text)


def verdict(found: vlscore.Localization) -> str:
    """Say what was found, and which number decided."""
    scored = f"best map {found.score:.3f}, empty image {found.base_score:.3f}"
    if found.present:
        return f"{len(found.boxes)} box{'es' * (len(found.boxes) != 1)}; score: {scored}"
    if found.score <= found.base_score:
        return f"Not found: no masked photo fits these words better than an empty image does ({scored})."
    return (
        f"Not found: too many everyday things fit this photo better (p = {found.p_absent:.2f},"
        f" at most {vlscore.PRESENT} is found; {scored})."
    )


def class_of(prompt: str) -> str:
    """Return what a prompt names: ``dog`` for "an image of a dog.", and the whole of any other prompt."""
    before, after = vlscore.TEMPLATE.split("{}")
    is_usual = prompt.startswith(before) and prompt.endswith(after)
    return prompt.removeprefix(before).removesuffix(after) or prompt if is_usual else prompt
