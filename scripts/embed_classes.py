"""Embed ImageNet's class names for the offline model: data/models/lite0-minilm-classes.safetensors.

1,000 sentences take longer than all else that loading the model needs.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

import vlscore

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Write the sentence embeddings of "an image of a {class}.", (1000, 384), unit, float32."""
    sentences = vlscore.load_model("lite0-minilm", "cpu").sentences
    prompts = [vlscore.TEMPLATE.format(names[0]) for names in vlscore.imagenet_classes().values()]
    content = save(
        {"classes": sentences(prompts)}, {"model": "all-MiniLM-L6-v2", "template": vlscore.TEMPLATE}
    )
    vlscore.write_whole(ROOT / "data/models/lite0-minilm-classes.safetensors", content)


if __name__ == "__main__":
    main()
