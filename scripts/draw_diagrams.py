"""Draw the book's diagrams, each an SVG file for light and dark pages: book/_static/diagrams/.

python scripts/draw_diagrams.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diagrams import svg
from diagrams_field import field
from diagrams_ladder import ladder
from diagrams_method import score_cam, vl_score
from diagrams_models import clip, resnet, vit_block
from diagrams_results import overview, sizes
from diagrams_worked import worked_example

OUT = Path(__file__).parents[1] / "book" / "_static" / "diagrams"
DRAWINGS = (  # function, title, description
    (
        clip,
        "CLIP: two encoders, one space, the contrastive matrix",
        "Four images pass through the image encoder and become unit vectors u. Four texts pass through the "
        "text encoder and become unit vectors v. A matrix holds the product of each u with each v. Training "
        "raises its diagonal, the pairs that belong together, above the rest, so that an image lies beside "
        "its text in the shared space. Later, the text of the largest cosine names an image's class.",
    ),
    (
        score_cam,
        "Score-CAM, from an image to the saliency map of a class",
        "A classifier gives activation maps of an image. Each map becomes a mask, and each masked image "
        "passes through the same classifier. The logit of class c, less that of a base image, becomes the "
        "map's weight by a softmax. The weighted sum of all maps, cut off below zero, is the saliency map "
        "of class c.",
    ),
    (
        vl_score,
        "VL-Score, from an image and a prompt to boxes",
        "Once per image: the image encoder gives C activation maps, each map becomes a mask, and the "
        "encoder embeds the C masked images and an empty image. For each prompt: the text encoder embeds "
        "the prompt, and each masked image is scored by its cosine with it. Maps that do not score above "
        "the empty image are dropped; if all are, the object is absent. A softmax with temperature τ turns "
        "the other scores into weights. The weighted sum of the kept maps is the saliency map, and boxes "
        "surround its connected parts above α of the maximum.",
    ),
    (
        vit_block,
        "A residual block of CLIP's ViT, and where maps can be read",
        "Tokens pass through a layer norm, projections to query, key and value, attention and an output "
        "projection, and are added to what came in; then through a layer norm and an MLP, added again. Maps "
        "can be read at four places: query, key and value; their principal components; the class token's "
        "attention, one map per head; and the block's output. Token 0, the class token, is left out, and "
        "the patch tokens go back to the grid of h×w cells, row by row.",
    ),
    (
        resnet,
        "CLIP's ModifiedResNet, from the image to the embedding",
        "RN50 takes 3×224×224 numbers. A stem of three convolutions and a pooling gives 64×56×56, layer1 "
        "256×56×56, layer2 512×28×28, layer3 1024×14×14 and layer4 2048×7×7. The attention pool makes an "
        "embedding of 1024 numbers of that, of which none has a location. Maps are read at the end of "
        "layer4, or of layer3, whose cells are smaller.",
    ),
    (
        worked_example,
        "VL-Score worked by hand on three maps of 2×2 cells",
        "Three maps become masks, and the masked images have the scores 0.30, 0.26 and 0.21. The empty "
        "image has 0.22, so the third map is dropped. A softmax at τ = 0.05 gives the weights 0.69 and 0.31. "
        "The weighted sum of the first two maps is scaled from 0 to 1, its lower two cells are above "
        "α = 0.5, and the box around them is (0, 50, 100, 100).",
    ),
    (
        field,
        "Four ways from an image to a heat map",
        "Grad-CAM follows the gradient of a score back to the maps, and weights them by it. Score-CAM, "
        "gScoreCAM and VL-Score mask the image with each map, and weight the map by the score of the masked "
        "image. MaskCLIP, CLIP Surgery and GEM compare the embedding of each cell with that of the text. "
        "TokenCut and LOST read no text, and separate the cells that are unlike the others.",
    ),
    (
        overview,
        "The constant box, plain, mask-free and refined VL-Score on seven sets of images",
        "GT-known localization, with 95 % intervals for plain and refined. Refined VL-Score is above plain "
        "on each set. The constant box is close to plain VL-Score on photos of raccoons and of ImageNet, "
        "above it on pairs of photos, and below it elsewhere. On photos, mask-free refinement with the text "
        "is close to refined; without the text it is lower on pairs, and a little lower on the others.",
    ),
    (
        ladder,
        "What each step from Score-CAM to the fast path saves, in seconds",
        "Seven bars on a logarithmic axis, for one photo and one prompt on two CPU cores in float32: "
        "pytorch-grad-cam's Score-CAM, a plain loop, batches, constant maps skipped, compiled, 64 maps with "
        "the others predicted, and a further prompt, which needs no pass and takes milliseconds.",
    ),
    (
        sizes,
        "Hits of a constant box on 800 photos of ImageNet, by the size of the largest object",
        "Five bars, for photos whose largest object covers less than 10, 10 to 25, 25 to 50, 50 to 75, and "
        "75 % or more of the photo. The constant box hits none in the first two, about half in the third, "
        "and nearly all in the last two.",
    ),
)


def draw_all() -> dict[str, str]:
    """The text of each drawing, by the name of its file."""
    return {f"{draw.__name__}.svg": svg(title, words, *draw()) for draw, title, words in DRAWINGS}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the book's diagrams.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: %(default)s)")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in draw_all().items():
        (out / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
