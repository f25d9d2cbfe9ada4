"""The image encoders that open_clip builds: its own networks and timm's, each with its layers."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from vlscore_lib.models.base import unit
from vlscore_lib.models.openai_clip import embed_resnet_cells, resnet_layers, run_larger
from vlscore_lib.models.openclip_base import OpenClipModel
from vlscore_lib.models.vit import TransformerLayers


class OpenClipResNet(OpenClipModel):
    """A ModifiedResNet, the same as OpenAI's."""

    fine_layer = "layer2"

    def layer_modules(self):
        return resnet_layers(self.clip.visual)

    def run_visual(self, pixels):
        return run_larger(self.clip.visual, "attnpool.positional_embedding", pixels, self.stride)

    def cell_embeddings(self, maps):
        return embed_resnet_cells(self.clip.visual.attnpool, maps)


class OpenClipTransformer(TransformerLayers, OpenClipModel):
    """open_clip's own Vision Transformer: class token, mean or attention pooling (CoCa)."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.blocks = self.clip.visual.transformer.resblocks
        self.stride = self.clip.visual.patch_size[0]

    def run_visual(self, pixels):
        return run_larger(self.clip.visual, "positional_embedding", pixels, self.stride)

    def embed_tokens(self, tokens):
        visual = self.clip.visual
        return visual._pool(tokens)[0] @ visual.proj


class TimmTransformer(TransformerLayers, OpenClipModel):
    """A Vision Transformer of timm: SigLIP, EVA, MobileCLIP-B, ViTamin and others."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        trunk = self.trunk = self.clip.visual.trunk
        self.blocks, self.prefix = trunk.blocks, trunk.num_prefix_tokens
        self.has_class_token = getattr(trunk, "cls_token", None) is not None
        self.stride = self.input_size // trunk.patch_embed.grid_size[0]

    def run_visual(self, pixels):
        if pixels.shape[-1] == self.input_size:
            return self.visual(pixels)
        with any_size(self.trunk, pixels.shape[-1] // self.stride):
            return self.trunk.forward_features(pixels)

    def embed_tokens(self, tokens):
        return self.clip.visual.head(self.trunk.forward_head(self.trunk.norm(tokens)))


@contextmanager
def any_size(trunk, side: int):
    """Let a timm ViT take pixels of side × side patches, with positions for them, while the block runs."""
    from timm.layers import Format

    embed, rope = trunk.patch_embed, getattr(trunk, "rope", None)
    before = embed.strict_img_size, embed.flatten, embed.output_fmt, trunk.dynamic_img_size
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    trunk.dynamic_img_size = True
    # Rotary positions that were computed ahead are for one grid only.
    ahead = getattr(rope, "pos_embed", None)
    if ahead is not None:
        grid = rope.feat_shape
        rope.update_feat_shape([side, side])
    try:
        yield
    finally:
        embed.strict_img_size, embed.flatten, embed.output_fmt, trunk.dynamic_img_size = before
        if ahead is not None:
            rope.feat_shape, rope.pos_embed = grid, ahead


class TimmStages(OpenClipModel):
    """A network of timm in stages, each of half the resolution: ConvNeXt, FastViT (MobileCLIP), Swin."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.trunk = self.clip.visual.trunk
        self.stages = {each["module"]: each["reduction"] for each in self.trunk.feature_info}
        *_, self.stride = self.stages.values()
        self.fine_layer = next(name for name, reduction in self.stages.items() if reduction >= 8)

    def layer_modules(self):
        taps = {}
        for name in self.stages:
            stage = self.trunk.get_submodule(name)
            taps |= {f"{name}.{n}": block for n, block in enumerate(getattr(stage, "blocks", []))}
            taps[name] = stage
        if hasattr(self.trunk, "final_conv"):
            taps["final_conv"] = self.trunk.final_conv
        return taps

    @property
    def is_channels_last(self) -> bool:
        """Whether features come as (B, h, w, C)."""
        return getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"

    def output_maps(self, output):
        return output.permute(0, 3, 1, 2) if self.is_channels_last else output

    def run_visual(self, pixels):
        return self.trunk.forward_features(pixels)

    @torch.inference_mode()
    def cell_embeddings(self, maps):
        """Project each cell with the network's own head, as an image of one cell."""
        cells = maps.to(self.device).flatten(1).T  # (h·w, C)
        cells = cells[:, None, None] if self.is_channels_last else cells[:, :, None, None]
        found = unit(self.clip.visual.head(self.trunk.forward_head(cells)))
        return found.T.unflatten(1, maps.shape[1:]).cpu()


def choose_encoder(visual: torch.nn.Module) -> type[OpenClipModel]:
    """Choose the class of model for an image encoder."""
    if hasattr(visual, "trunk"):
        return TimmTransformer if hasattr(visual.trunk, "blocks") else TimmStages
    return OpenClipTransformer if hasattr(visual, "transformer") else OpenClipResNet
