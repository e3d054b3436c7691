"""SigLIP and SigLIP 2 as transformers writes them: image tower, text tower, or both.

    model_type            class               ours             patch embedding
    siglip                SiglipModel         Contrastive      convolution (fixed resolution)
    siglip2               Siglip2Model        Contrastive      linear (NaFlex)
    siglip_vision_model   SiglipVisionModel   VisionEncoder    convolution
    siglip2_vision_model  Siglip2VisionModel  VisionEncoder    linear
    siglip_text_model     SiglipTextModel     TextEncoder
    siglip2_text_model    Siglip2TextModel    TextEncoder

The Hub's fixed-resolution SigLIP 2 checkpoints are "siglip", too. A single tower has the names of
transformers 5, without "vision_model." or "text_model."; files with this prefix, as in older
versions and with both towers, are also read (`prefixes`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.interop.layouts.description import check_fixed, read_fields
from unicom_jax.interop.mapping import Rule, Table, linear, norm, prefixed
from unicom_jax.models.contrastive import Contrastive
from unicom_jax.models.encoder_stack import Tower
from unicom_jax.models.text_encoder import TextEncoder
from unicom_jax.models.vision_encoder import VisionEncoder

Model = Contrastive | VisionEncoder | TextEncoder

VISION, TEXT = "vision_model.", "text_model."
# Our fields: the key of config.json and its default there.
TOWER_FIELDS = {
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_dim": ("intermediate_size", 3072),
}
TEXT_FIELDS = {"vocab_size": ("vocab_size", 32_000), "max_length": ("max_position_embeddings", 64)}
TOWER_FIXED = {"hidden_act": ("gelu_pytorch_tanh",), "layer_norm_eps": (1e-6,)}
VISION_FIXED = {"num_channels": (3,), "vision_use_head": (True,)}
REMEDY = "take a SigLIP or SigLIP 2 checkpoint of the published kind"


# ---- names ------------------------------------------------------------------------------------


def table(module: Model) -> Table:
    """Rules for all weights of `module`.

    Raises:
      ValueError: a `Contrastive` has a pixel head, which SigLIP lacks. It is only for training, so
        pass `dataclasses.replace(module, pixel_head=False)`, whose other weights are the same.
    """
    if isinstance(module, VisionEncoder):
        return _vision(module)
    if isinstance(module, TextEncoder):
        return _text()
    if module.pixel_head:
        raise ValueError("SigLIP has no pixel head; take the model with pixel_head=False")
    return (
        *prefixed(_vision(module.vision), "vision/", VISION),
        *prefixed(_text(), "text/", TEXT),
        Rule("logit_scale", "logit_scale", shape=(1,)),
        Rule("logit_bias", "logit_bias", shape=(1,)),
    )


def blocks(ours: str = "blocks", layer: str = "encoder.layers.{layer}") -> Table:
    """Rules for a stack of `EncoderBlock` at the path `ours`; `layer` is their names' prefix."""
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    attention = (
        rule
        for part, theirs in names.items()
        for rule in linear(f"{ours}/attention/{part}", f"{layer}.self_attn.{theirs}")
    )
    return (
        *norm(f"{ours}/attention_norm", f"{layer}.layer_norm1"),
        *attention,
        *norm(f"{ours}/mlp_norm", f"{layer}.layer_norm2"),
        *linear(f"{ours}/mlp/up", f"{layer}.mlp.fc1"),
        *linear(f"{ours}/mlp/down", f"{layer}.mlp.fc2"),
    )


def _vision(module: VisionEncoder) -> Table:
    side, width = module.patch_size, module.width
    patch = "embeddings.patch_embedding"
    # A convolution's weight is (out, channel, row, column); our patches are (row, column, channel).
    convolution = {"axes": (2, 3, 1, 0), "shape": (width, 3, side, side)}
    inward = [f"head/attention/{name}" for name in ("query", "key", "value")]
    return (
        Rule(
            "embedding/kernel",
            f"{patch}.weight",
            **({"axes": (1, 0)} if module.naflex else convolution),
        ),
        Rule("embedding/bias", f"{patch}.bias"),
        Rule(
            "positions",
            "embeddings.position_embedding.weight",
            shape=(module.position_rows * module.position_cols, width),
        ),
        *blocks(),
        *norm("norm", "post_layernorm"),
        Rule("head/probe", "head.probe", shape=(1, 1, width)),
        Rule(
            tuple(f"{name}/kernel" for name in inward),
            "head.attention.in_proj_weight",
            axes=(1, 0),
        ),
        Rule(tuple(f"{name}/bias" for name in inward), "head.attention.in_proj_bias"),
        *linear("head/attention/out", "head.attention.out_proj"),
        *norm("head/norm", "head.layernorm"),
        *linear("head/mlp/up", "head.mlp.fc1"),
        *linear("head/mlp/down", "head.mlp.fc2"),
    )


def _text() -> Table:
    return (
        Rule("embedding/table", "embeddings.token_embedding.weight"),
        Rule("positions", "embeddings.position_embedding.weight"),
        *blocks(),
        *norm("norm", "final_layer_norm"),
        *linear("head", "head"),
    )


def prefixes(module: Model) -> tuple[str, ...]:
    """Possible prefixes of all names, of which a folder uses one; we write the first."""
    return {VisionEncoder: ("", VISION), TextEncoder: ("", TEXT)}.get(type(module), ("",))


def spare(module: Model) -> tuple[str, ...]:
    """Prefixes of names of tensors that may exist beside a tower and are not read with it."""
    other = {VisionEncoder: TEXT, TextEncoder: VISION}.get(type(module))
    return (other, "logit_scale", "logit_bias") if other else ()


# ---- config.json ------------------------------------------------------------------------------


def describe(module: Model) -> dict[str, Any]:
    """The config.json of `module`.

    Raises:
      ValueError: the position grid is not square, which SigLIP cannot describe.
    """
    if isinstance(module, VisionEncoder):
        kind = _kind(module.naflex)
        architecture, config = f"{kind.capitalize()}VisionModel", _describe_vision(module)
    elif isinstance(module, TextEncoder):
        architecture, config = "Siglip2TextModel", _describe_text(module, "siglip2")
    else:
        kind = _kind(module.vision.naflex)
        architecture = f"{kind.capitalize()}Model"
        config = {
            "model_type": kind,
            "text_config": _describe_text(module.text, kind),
            "vision_config": _describe_vision(module.vision),
        }
    return {"architectures": [architecture], **config}


def _kind(naflex: bool) -> str:
    return "siglip2" if naflex else "siglip"


def _describe_tower(module: Tower, kind: str) -> dict[str, Any]:
    sizes = {key: getattr(module, ours) for ours, (key, _) in TOWER_FIELDS.items()}
    fixed = {key: values[0] for key, values in TOWER_FIXED.items()}
    return {"model_type": kind, **sizes, **fixed, "attention_dropout": 0.0}


def _describe_vision(module: VisionEncoder) -> dict[str, Any]:
    rows, columns = module.position_rows, module.position_cols
    if rows != columns:
        raise ValueError(
            f"a position grid of {rows} x {columns} is not square, as SigLIP's config.json requires"
        )
    grid = (
        {"num_patches": rows * columns}
        if module.naflex
        else {"image_size": rows * module.patch_size}
    )
    fixed = {key: values[0] for key, values in VISION_FIXED.items()}
    kind = f"{_kind(module.naflex)}_vision_model"
    return {**_describe_tower(module, kind), "patch_size": module.patch_size, **grid, **fixed}


def _describe_text(module: TextEncoder, kind: str) -> dict[str, Any]:
    return {
        **_describe_tower(module, f"{kind}_text_model"),
        "vocab_size": module.vocab_size,
        "max_position_embeddings": module.max_length,
        "projection_size": module.out_dim or module.width,
    }


def describe_images(module: VisionEncoder, max_patches: int) -> dict[str, Any]:
    """The preprocessor_config.json of `module`, for pictures resized as ours, in -1..1.

    `max_patches`: the most patches of a picture in a NaFlex model, which keeps aspect ratios.
    """
    side = module.position_rows * module.patch_size
    if module.naflex:
        kind = {
            "image_processor_type": "Siglip2ImageProcessor",
            "patch_size": module.patch_size,
            "max_num_patches": max_patches,
        }
    else:
        kind = {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": side, "width": side},
        }
    steps = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
    return {
        **kind,
        **dict.fromkeys(steps, True),
        "resample": 2,  # PIL's number for BILINEAR
        "rescale_factor": 1 / 255,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }


def module_of(config: Mapping[str, Any], path: Path) -> Model:
    """The model that a config.json at `path` describes.

    Raises:
      ConfigError: it describes another kind of model, or a SigLIP that ours does not support.
    """
    kind = config.get("model_type")
    naflex = str(kind).startswith("siglip2")
    makers = {
        "": _contrastive,
        "_vision_model": _vision_of,
        "_text_model": lambda config, _, path: _text_of(config, path),
    }
    for ending, maker in makers.items():
        if kind in (f"siglip{ending}", f"siglip2{ending}"):
            return maker(config, naflex, path)
    raise ConfigError(f"{path}: model_type is {kind!r}, not siglip or siglip2; {REMEDY}")


def _contrastive(config: Mapping[str, Any], naflex: bool, path: Path) -> Contrastive:
    vision = _vision_of(config.get("vision_config") or {}, naflex, path)
    text = _text_of(config.get("text_config") or {}, path)
    if text.out_dim != vision.width:
        raise ConfigError(
            f"{path}: text_config.projection_size is {text.out_dim}, but image embeddings have "
            f"{vision.width}; {REMEDY}"
        )
    return Contrastive(vision, text)


def _vision_of(config: Mapping[str, Any], naflex: bool, path: Path) -> VisionEncoder:
    check_fixed(config, TOWER_FIXED | VISION_FIXED, path, REMEDY)
    fields = TOWER_FIELDS | {"patch_size": ("patch_size", 16)}
    side = {"side": ("num_patches", 256) if naflex else ("image_size", 224)}
    sizes = read_fields(config, fields | side, path)
    for key in ("patch_size", "side"):
        if not isinstance(sizes[key], int):
            raise ConfigError(f"{path}: {(fields | side)[key][0]} is {sizes[key]!r}; {REMEDY}")
    side = sizes.pop("side")
    side = math.isqrt(side) if naflex else side // sizes["patch_size"]
    return VisionEncoder(**sizes, position_rows=side, position_cols=side, naflex=naflex)


def _text_of(config: Mapping[str, Any], path: Path) -> TextEncoder:
    check_fixed(config, TOWER_FIXED, path, REMEDY)
    sizes = read_fields(config, TOWER_FIELDS | TEXT_FIELDS, path)
    return TextEncoder(**sizes, out_dim=config.get("projection_size") or sizes["width"])
