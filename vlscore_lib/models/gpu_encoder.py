"""A GPU's image encoder: in half precision, compiled as one with the masks before it."""

from __future__ import annotations

import copy
import os
import sys
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vlscore_lib.cache import cache_folder
from vlscore_lib.masks import make_masks

SMALLEST_BATCH = 64  # images; smaller batches are padded, since each size is compiled separately


class MaskedEncoder(torch.nn.Module):
    """Masks and an image encoder in one graph: pixels X (B, 3, S, S), maps A (B, h, w) -> features (B, F).

    The masks are made from the low-resolution maps inside the graph, so a compiler never writes a masked
    image of full precision to memory.
    """

    def __init__(self, visual: torch.nn.Module, dtype: torch.dtype):
        super().__init__()
        self.visual, self.dtype = visual, dtype

    def forward(self, pixels: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return self.encode(pixels * make_masks(maps, pixels.shape[-1])[:, None])

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the features of images without masks."""
        pixels = pixels.to(self.dtype, memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, self.dtype):
            return self.visual(pixels).float()


class GpuEncoder:
    """A copy of an image encoder, compiled: pixels (B, 3, S, S), and maps (B, h, w) that mask them.

    Compilation takes some seconds for each batch size, and its result is kept on disk.  If it fails, a line
    on stderr says so, and PyTorch runs the same operations one by one.
    """

    def __init__(self, visual: torch.nn.Module, size: int, dtype: torch.dtype, backend: str = "inductor"):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
        self.masked = MaskedEncoder(lower_precision(fold_batch_norms(visual, size), dtype), dtype).eval()
        self.compiled = torch.compile(self.masked, backend=backend, dynamic=False)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor, maps: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the features (B, F), float32."""
        if maps is None:
            return self.masked.encode(pixels)
        count, size = len(pixels), choose_padded_size(len(pixels))
        whole = fill_up(pixels, size), fill_up(maps, size)
        try:
            # The limit counts the sizes of all models together.
            with torch._dynamo.config.patch(recompile_limit=64):
                return self.compiled(*whole)[:count]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler and its tools raise nearly any type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
            print(
                f"vlscore: PyTorch cannot compile the encoder ({reason}): it runs as it is", file=sys.stderr
            )
            self.compiled = self.masked
            return self.masked(*whole)[:count]


def choose_padded_size(count: int) -> int:
    """Choose the size to which a batch of ``count`` images is padded: a power of two."""
    return max(SMALLEST_BATCH, 1 << (count - 1).bit_length())


def fill_up(batch: torch.Tensor, size: int) -> torch.Tensor:
    """Repeat the first row of a batch until it has ``size`` rows."""
    return torch.cat([batch, batch[:1].expand(size - len(batch), *batch.shape[1:])])


@torch.inference_mode()
def fold_batch_norms(visual: torch.nn.Module, size: int) -> torch.nn.Module:
    """Copy an image encoder, and fold its batch norms into the convolutions before them.

    "Before" means defined before.  If the order in which they run differs, the features would change, and the
    copy keeps its batch norms.
    """
    whole, folded = copy.deepcopy(visual), copy.deepcopy(visual)
    for parent in folded.modules():
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, torch.nn.Conv2d) and type(norm) is torch.nn.BatchNorm2d:
                statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
                setattr(parent, name, torch.nn.Identity())
    device = next(whole.parameters()).device
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    is_same = F.cosine_similarity(whole(image), folded(image)).item() > 0.9999
    return folded if is_same else whole


def lower_precision(net: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Convert the weights of a network in place, except those of its norms."""
    for module in net.modules():
        if "norm" in type(module).__name__.lower():
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.to(dtype), requires_grad=False))
    return net.to(memory_format=torch.channels_last)
