"""ALIGN as Hugging Face's AlignModel."""

from __future__ import annotations

from pathlib import Path

import torch

from vlscore_lib.models.base import Preprocessing, unit
from vlscore_lib.models.hugging_face import HuggingFaceModel, load_net, read_preprocessing

HALF = (127.5,) * 3  # pixels of -1 to 1
INPUT_SIZE = 289  # Jia et al. 2021, section 5
EFFICIENTNET_SIZE = 600  # of EfficientNet-B7, which transformers' configuration has in its place


def load(name: str, folder: Path, device: str) -> Align:
    """Load an AlignModel from a folder."""
    net = load_net("AlignModel", folder)
    size = net.config.vision_config.image_size
    usual = Preprocessing(INPUT_SIZE if size == EFFICIENTNET_SIZE else size, HALF, HALF, "bilinear")
    return Align(name, net, device, folder, read_preprocessing(folder, usual))


class Visual(torch.nn.Module):
    """ALIGN's image encoder: pixels (B, 3, T, T) -> the mean, or the largest, of its cells (B, D)."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.vision = net.vision_model
        self.is_mean = net.config.vision_config.pooling_type == "mean"

    def forward(self, pixels):
        cells = self.vision.encoder(self.vision.embeddings(pixels)).last_hidden_state
        return cells.mean((2, 3)) if self.is_mean else cells.amax((2, 3))


class Align(HuggingFaceModel):
    """ALIGN (Jia et al. 2021): an EfficientNet and BERT; a cell's features are its embedding."""

    def __init__(self, name, net, device, folder, preprocessing):
        super().__init__(name, net, device, folder, preprocessing)
        blocks = net.vision_model.encoder.blocks
        strides = [block.depthwise_conv.depthwise_conv.stride[0] for block in blocks]
        halvings = [n for n, stride in enumerate(strides) if stride == 2]  # the stem halves once before
        self.stride = 2 ** (1 + len(halvings))
        self.fine_layer = f"block{halvings[2] - 1}"  # the last block with cells of 8 pixels

    @property
    def logit_scale(self) -> float:
        """ALIGN divides cosines by a temperature, which it learns."""
        return 1 / float(self.net.temperature)

    def make_visual(self, net):
        return Visual(net)

    def layer_modules(self):
        return {f"block{n}": block for n, block in enumerate(self.net.vision_model.encoder.blocks)}

    @torch.inference_mode()
    def cell_embeddings(self, maps):
        return unit(maps.flatten(1).T).T.unflatten(1, maps.shape[1:]).cpu()
