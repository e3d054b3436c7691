"""Qwen2.5-VL as transformers writes it: `Qwen2_5_VLForConditionalGeneration`.

Files have the names of the released checkpoints, which all versions of transformers read and
`save_pretrained` writes: "model." for the language model and "visual." for the image tower. Names
with "model.language_model." and "model.visual.", those of the classes since version 4.52, are also
read. In config.json, fields of the language model stand beside the others, as released, or in a
"text_config"; we write the former, which all versions read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unicom_jax.config import ConfigError
from unicom_jax.interop.layouts import qwen
from unicom_jax.interop.layouts.description import check_fixed, read_fields
from unicom_jax.interop.mapping import Rule, Table, linear, norm, prefixed
from unicom_jax.models.qwen_vision import DEVIATION, MEAN, QwenVision
from unicom_jax.models.qwen_vl import QwenVL
from unicom_jax.models.transformer import Transformer

Model = QwenVL | QwenVision | Transformer

MODEL_TYPE, VISION, LANGUAGE = "qwen2_5_vl", "visual.", ("model.", "lm_head.")
REMEDY = "take a Qwen2.5-VL checkpoint of the published kind"
# Our fields: the key of config.json and its default in transformers.
TEXT_FIELDS = {
    "vocab_size": ("vocab_size", 152_064),
    "width": ("hidden_size", 8192),
    "depth": ("num_hidden_layers", 80),
    "heads": ("num_attention_heads", 64),
    "kv_heads": ("num_key_value_heads", 8),
    "mlp_dim": ("intermediate_size", 29_568),
    "norm_eps": ("rms_norm_eps", 1e-5),
}
THETA = 1e6
SECTIONS = (16, 24, 24)
VISION_FIELDS = {
    "width": ("hidden_size", 3584),
    "depth": ("depth", 32),
    "heads": ("num_heads", 16),
    "mlp_dim": ("intermediate_size", 3420),
    "out_dim": ("out_hidden_size", 3584),
    "patch_size": ("patch_size", 14),
    "frames": ("temporal_patch_size", 2),
    "merge": ("spatial_merge_size", 2),
    "window_size": ("window_size", 112),
    "whole_layers": ("fullatt_block_indexes", (7, 15, 23, 31)),
}
VISION_FIXED = {"hidden_act": ("silu",), "in_channels": (3,), "in_chans": (3,)}
PICTURE = {"picture_token": ("image_token_id", 151_655)}


# ---- names ------------------------------------------------------------------------------------


def table(module: Model) -> Table:
    """Rules for all weights of `module`, the whole model or one of its two parts."""
    if isinstance(module, QwenVision):
        return prefixed(_vision(module), theirs=VISION)
    if isinstance(module, Transformer):
        return qwen.table(module)
    return (
        *prefixed(table(module.vision), "vision/"),
        *prefixed(table(module.transformer), "transformer/"),
    )


def _vision(module: QwenVision) -> Table:
    block, inward = "blocks.{layer}", [f"blocks/attention/{n}" for n in ("query", "key", "value")]
    side = module.patch_size
    mlp = (
        rule
        for name in ("gate", "up", "down")
        for rule in linear(f"blocks/mlp/{name}", f"{block}.mlp.{name}_proj")
    )
    return (
        # A convolution's weight is (out, channel, frame, row, column).
        Rule(
            "embedding/kernel",
            "patch_embed.proj.weight",
            axes=(1, 2, 3, 4, 0),
            shape=(module.width, 3, module.frames, side, side),
        ),
        *norm("blocks/attention_norm", f"{block}.norm1", bias=False),
        Rule(tuple(f"{n}/kernel" for n in inward), f"{block}.attn.qkv.weight", axes=(1, 0)),
        Rule(tuple(f"{n}/bias" for n in inward), f"{block}.attn.qkv.bias"),
        *linear("blocks/attention/out", f"{block}.attn.proj"),
        *norm("blocks/mlp_norm", f"{block}.norm2", bias=False),
        *mlp,
        *norm("norm", "merger.ln_q", bias=False),
        *linear("merger/up", "merger.mlp.0"),
        *linear("merger/down", "merger.mlp.2"),
    )


def new_name(name: str) -> str:
    """The released name of a tensor, from its name in a file of either kind."""
    return re.sub(r"^model\.(language_model|visual)\.", _released, name)


def _released(found: re.Match) -> str:
    return LANGUAGE[0] if found[1] == "language_model" else VISION


def spare(module: Model) -> tuple[str, ...]:
    """Prefixes of names of tensors that may exist and are not read with a part of the model."""
    return {QwenVision: LANGUAGE, Transformer: (VISION,)}.get(type(module), ())


def twins(module: Model) -> dict[str, str]:
    """Tensors that may be stored a second time: {name: the one it has to equal}."""
    if isinstance(module, QwenVision):
        return {}
    return qwen.twins(module if isinstance(module, Transformer) else module.transformer)


def derived(module: Model) -> dict[str, np.ndarray]:
    """The table of rotary frequencies that older versions of transformers stored in each layer."""
    if isinstance(module, QwenVision):
        return {}
    return qwen.derived(module if isinstance(module, Transformer) else module.transformer)


# ---- config.json ------------------------------------------------------------------------------


def describe(module: QwenVL) -> dict[str, Any]:
    """The config.json of `module`.

    Raises:
      ValueError: the language model is not one of Qwen2.5-VL.
    """
    text, vision = module.transformer, module.vision
    if text.logit_softcap or text.qk_norm or not text.qkv_bias:
        raise ValueError(
            "the language model of Qwen2.5-VL has biases of query, key and value, and neither "
            f"norms of them nor bounded logits, unlike qkv_bias={text.qkv_bias}, "
            f"qk_norm={text.qk_norm}, logit_softcap={text.logit_softcap}"
        )
    if text.head_dim * text.heads != text.width:
        raise ValueError(
            f"config.json of Qwen2.5-VL has no head_dim, so heads={text.heads} of "
            f"head_dim={text.head_dim} have to make up the width={text.width}"
        )
    rope = qwen.describe_rope(text)
    sections = {"mrope_section": list(text.rope_sections)}
    kind = rope["rope_parameters"] if text.rope_scaling != "none" else {"type": "mrope"}
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        **{key: getattr(text, ours) for ours, (key, _) in TEXT_FIELDS.items()},
        "tie_word_embeddings": text.tied_head,
        "rope_theta": text.rope_theta,
        "rope_scaling": {**kind, **sections},
        "hidden_act": "silu",
        "use_sliding_window": False,
        "image_token_id": module.picture_token,
        "vision_config": {
            "model_type": MODEL_TYPE,
            **{key: getattr(vision, ours) for ours, (key, _) in VISION_FIELDS.items()},
            "hidden_act": "silu",
            "in_channels": 3,
        },
    }


def describe_images(module: QwenVision, patches: int) -> dict[str, Any]:
    """The preprocessor_config.json of `module`, for pictures of about so many patches."""
    pixels = patches * module.patch_size**2
    steps = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        **dict.fromkeys(steps, True),
        "patch_size": module.patch_size,
        "temporal_patch_size": module.frames,
        "merge_size": module.merge,
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
        "resample": 3,  # PIL's number for BICUBIC
        "rescale_factor": 1 / 255,
        "image_mean": MEAN.tolist(),
        "image_std": DEVIATION.tolist(),
    }


def module_of(config: Mapping[str, Any], path: Path) -> QwenVL:
    """The model that a config.json at `path` describes.

    Raises:
      ConfigError: it describes another kind of model, or one that ours does not support.
    """
    if config.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"{path}: model_type is {config.get('model_type')!r}, not {MODEL_TYPE}; {REMEDY}"
        )
    text = _text_of(config.get("text_config") or config, config, path)
    vision = _vision_of(config.get("vision_config") or {}, path)
    return QwenVL(vision, text, **read_fields(config, PICTURE, path))


def _text_of(text: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> Transformer:
    check_fixed(text, qwen.FIXED, path, REMEDY)
    qwen.check_layers(text, path, REMEDY)
    sizes = read_fields(text, TEXT_FIELDS, path)
    if text.get("num_key_value_heads", 8) is None:
        sizes["kv_heads"] = sizes["heads"]
    # Version 4 wrote the key into text_config; either place ties the head.
    tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
    rope = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    sections = tuple(rope.pop("mrope_section", SECTIONS))
    if rope.get("rope_type", rope.get("type")) == "mrope":
        rope["rope_type"] = "default"
    key = "rope_scaling" if text.get("rope_scaling") else "rope_parameters"
    described = {**text, key: rope}
    return Transformer(
        **sizes,
        head_dim=sizes["width"] // sizes["heads"],
        tied_head=tied,
        rope_sections=sections,
        **qwen.rope_of(described, path, REMEDY, THETA),
    )


def _vision_of(config: Mapping[str, Any], path: Path) -> QwenVision:
    check_fixed(config, VISION_FIXED, path, REMEDY)
    sizes = read_fields(config, VISION_FIELDS, path)
    rope = config.get("rope_parameters") or {}
    check_fixed(rope, {"rope_theta": (10_000.0,), "rope_type": ("axial",)}, path, REMEDY)
    return QwenVision(**{**sizes, "whole_layers": tuple(sizes["whole_layers"])})
