"""Cheers' released checkpoint (arXiv 2603.12793): its names, and our modules from its config.json.

theirs (all below "model.")   ours
language_model, lm_head       unified/transformer        Qwen2.5; a tied head is stored twice
vision_representation         unified/vision             SigLIP 2 with its pooling head
vae_decoder_projector         unified/decoder            the trained copy of the decoder
und_projector                 unified/projector
gen_projector, hi_projector   unified/head/semantics, unified/head/details
hi_gate, time_embed           unified/head/gate, norm, semantics_time, details_time
vae_model                     autoencoder                FLUX.2's, frozen

The autoencoder's halves have the names of latent diffusion: resolutions are counted from the
highest in both halves, and attention is made of 1 x 1 convolutions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError, defaults
from unicom_jax.core.module import Module, Specs, iter_specs
from unicom_jax.families.cheers import CheersImages, make_cheers
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.interop.layouts import autoencoder, qwen, siglip
from unicom_jax.interop.layouts.description import check_fixed, read_fields
from unicom_jax.interop.mapping import Table, linear, norm, prefixed
from unicom_jax.models.autoencoder import AutoencoderKLFlux2
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.models.paint_space import LatentSpace
from unicom_jax.models.transformer import Transformer
from unicom_jax.models.vision_encoder import VisionEncoder


@dataclasses.dataclass(frozen=True)
class Cheers(Module):
    """All weights of a checkpoint; each of its two parts can be read alone."""

    unified: UnifiedModel
    autoencoder: AutoencoderKLFlux2

    def specs(self) -> Specs:
        return {"unified": self.unified.specs(), "autoencoder": self.autoencoder.specs()}


Model = Cheers | UnifiedModel | AutoencoderKLFlux2

MODEL_TYPE = "umm"
REMEDY = "take a checkpoint of Cheers like the published one"
VAE, COPY = "model.vae_model.", "model.vae_decoder_projector."
HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
# The prefixes of the names in each part; a checkpoint has no others.
OF_UNIFIED = (
    "lm_head.",
    *(
        f"model.{name}."
        for name in (
            *("language_model", "vision_representation", "vae_decoder_projector"),
            *("und_projector", "gen_projector", "hi_projector", "hi_gate", "time_embed"),
        )
    ),
)
COUNT = "bn.num_batches_tracked"  # belongs to the statistics; not used
HINTS = {
    f"{part}bn.{name}": "the statistics by which its latents are normalised; copy them again"
    for part in (VAE, COPY)
    for name in ("running_mean", "running_var")
}


# ---- names ------------------------------------------------------------------------------------


def table(module: Model) -> Table:
    """Rules for all weights of `module`."""
    if isinstance(module, AutoencoderKLFlux2):
        return prefixed(_autoencoder(module, len(module.widths)), theirs=VAE)
    if isinstance(module, UnifiedModel):
        return _unified(module)
    return (
        *prefixed(_unified(module.unified), "unified/"),
        *prefixed(table(module.autoencoder), "autoencoder/"),
    )


def _unified(module: UnifiedModel) -> Table:
    images: CheersImages = module.images
    decoder, vision = images.tokenizer.painter, images.tokenizer.vision
    levels = len(decoder.space.autoencoder.widths)
    language = (
        dataclasses.replace(rule, theirs=re.sub("^model", "model.language_model", rule.theirs))
        for rule in qwen.table(module.transformer)
    )
    return (
        *prefixed(tuple(language), "transformer/"),
        *prefixed(siglip.table(vision), "vision/", "model.vision_representation."),
        *prefixed(_autoencoder(decoder, levels), "decoder/", COPY),
        *norm("projector/norm", "model.und_projector.layernorm"),
        *_two_layers("projector/mlp", "model.und_projector.mlp"),
        *_stack("head/semantics", "model.gen_projector"),
        *_stack("head/details", "model.hi_projector"),
        *_two_layers("head/semantics_time", "model.time_embed.mlp_1"),
        *_two_layers("head/details_time", "model.time_embed.mlp_2"),
        *_two_layers("head/gate", "model.hi_gate.gate"),
        *norm("head/norm", "model.hi_gate.layer_norm"),
    )


def _two_layers(ours: str, theirs: str) -> Table:
    """Rules for a torch `Sequential` of Linear, activation and Linear."""
    return (*linear(f"{ours}/up", f"{theirs}.0"), *linear(f"{ours}/down", f"{theirs}.2"))


def _stack(ours: str, theirs: str) -> Table:
    """Rules for a `ModulatedStack`."""
    blocks, block = f"{ours}/blocks", f"{theirs}.diffusion_head_a.{{layer}}"
    last = f"{theirs}.diffusion_head_b"
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    mlp = {name: f"{name}_proj" for name in ("gate", "up", "down")}
    inner = {
        **{f"attention/{name}": f"attn.{foreign}" for name, foreign in attention.items()},
        **{f"mlp/{name}": f"mlp.{foreign}" for name, foreign in mlp.items()},
    }
    layers = (linear(f"{blocks}/{k}", f"{block}.{v}", bias=False) for k, v in inner.items())
    return (
        *linear(f"{blocks}/modulation", f"{block}.adaLN_modulation.1"),
        *norm(f"{blocks}/attention_norm", f"{block}.input_layernorm", bias=False),
        *norm(f"{blocks}/mlp_norm", f"{block}.post_attention_layernorm", bias=False),
        *(rule for layer in layers for rule in layer),
        *norm(f"{ours}/norm", f"{last}.norm_final", bias=False),
        *linear(f"{ours}/modulation", f"{last}.adaLN_modulation.1"),
        *linear(f"{ours}/output", f"{last}.linear"),
    )


# diffusers' names, which we use, to latent diffusion's.
RENAMED = (
    (r"^quant_conv", "encoder.quant_conv"),
    (r"^post_quant_conv", "decoder.post_quant_conv"),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".up.\1.block."),
    (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def _autoencoder(module: Module, levels: int) -> Table:
    """Rules for an autoencoder, or only its decoder, with `levels` resolutions."""
    shapes = {"/".join(path): spec.shape for path, spec in iter_specs(module.specs())}
    rules = []
    for rule in autoencoder.table(module):
        name = rule.theirs
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)
        name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up.{levels - 1 - int(m[1])}.", name)
        changed = {"theirs": name}
        if rule.axes == (1, 0):  # their projections are convolutions
            into, out = shapes[rule.ours]
            changed |= {"axes": (1, 0, 2, 3), "shape": (out, into, 1, 1)}
        rules.append(dataclasses.replace(rule, **changed))
    return tuple(rules)


def spare(module: Model) -> tuple[str, ...]:
    """Prefixes of names of tensors that may exist and are not read with `module`."""
    counts = (VAE + COUNT, COPY + COUNT)
    if isinstance(module, AutoencoderKLFlux2):
        return (*OF_UNIFIED, *counts)
    return (VAE, *counts) if isinstance(module, UnifiedModel) else counts


def twins(module: Model) -> dict[str, str]:
    """Tensors that may be stored a second time: {name: the one it has to equal}."""
    if isinstance(module, AutoencoderKLFlux2):
        return {}
    unified = module.unified if isinstance(module, Cheers) else module
    return {HEAD: EMBEDDING} if unified.transformer.tied_head else {}


# ---- config.json ------------------------------------------------------------------------------

# Our fields, by section: their key and its default.
SECTIONS: dict[str, dict[str, tuple[str, Any]]] = {
    "text_config": {
        "vocab_size": ("vocab_size", 152_064),
        "width": ("hidden_size", 3584),
        "mlp_dim": ("intermediate_size", 18_944),
        "depth": ("num_hidden_layers", 28),
        "heads": ("num_attention_heads", 28),
        "kv_heads": ("num_key_value_heads", 4),
        "norm_eps": ("rms_norm_eps", 1e-6),
        "rope_theta": ("rope_theta", 1e6),
        "tied_head": ("tie_word_embeddings", False),
    },
    "vision_representation_config": {
        "width": ("hidden_size", 768),
        "mlp_dim": ("intermediate_size", 3072),
        "depth": ("num_hidden_layers", 12),
        "heads": ("num_attention_heads", 12),
        "image_size": ("image_size", 256),
        "patch_size": ("patch_size", 16),
    },
    "vae_encoder_config": {
        "width": ("ch", 128),
        "factors": ("ch_mult", [1, 2, 4, 4]),
        "resnets": ("num_res_blocks", 2),
        "latent_channels": ("z_channels", 32),
    },
}
SECTIONS["vae_decoder_config"] = SECTIONS["vae_encoder_config"]
FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "text_config": {
        "hidden_act": ("silu",),
        "use_sliding_window": (False,),
        "rope_scaling": (None,),
    },
    "vision_representation_config": {
        "hidden_act": ("gelu_pytorch_tanh",),
        "layer_norm_eps": (1e-6,),
        "num_channels": (3,),
    },
    "vae_encoder_config": {"in_channels": (3,)},
    "vae_decoder_config": {"out_ch": (3,)},
}
# Values that their modelling file fixes.
FOLD, SEMANTICS_DEPTH, DETAILS_DEPTH = 2, 7, 3
OPTIONS = {"pixels": True, "gate": True, "norm": True, "positions": "released"}
DARKEST = 0.0
GROUPS = 32


def module_of(config: Mapping[str, Any], path: Path) -> Cheers:
    """The model that a config.json at `path` describes.

    Raises:
      ConfigError: it describes another family, or a Cheers model that ours does not support.
    """
    if config.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"{path}: model_type is {config.get('model_type')!r}, a checkpoint of Cheers has "
            f"{MODEL_TYPE!r}; {REMEDY}"
        )
    sizes = {name: _section(config, name, path) for name in SECTIONS}
    language, vision = sizes["text_config"], sizes["vision_representation_config"]
    frozen, copy = sizes["vae_encoder_config"], sizes["vae_decoder_config"]
    if frozen != copy:
        raise ConfigError(
            f"{path}: vae_encoder_config and vae_decoder_config belong to different autoencoders; "
            f"{REMEDY}"
        )
    side, patch = vision.pop("image_size"), vision["patch_size"]
    if side % (FOLD * patch):
        raise ConfigError(
            f"{path}: image_size is {side}; the sides of pictures have to be multiples of "
            f"{FOLD * patch}: patches of {patch} pixels, {FOLD} on each side of a slot"
        )
    rows = side // patch
    tower = VisionEncoder(**vision, position_rows=rows, position_cols=rows, naflex=False)
    own = AutoencoderKLFlux2(
        latent_channels=frozen["latent_channels"],
        widths=tuple(frozen["width"] * factor for factor in frozen["factors"]),
        resnets=frozen["resnets"],
        groups=GROUPS,
        quant_conv=True,
    )
    space = LatentSpace(own, patch, rows, rows)
    if frozen["width"] != space.channels:  # the modelling file uses one for the other
        raise ConfigError(
            f"{path}: ch is {frozen['width']}, but the head draws {space.channels} channels; "
            f"{REMEDY}"
        )
    return _model(language, tower, space)


def _section(config: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    found = config.get(name) or {}
    check_fixed(found, FIXED[name], path, REMEDY)
    return read_fields(found, SECTIONS[name], path)


def _model(language: Mapping[str, Any], vision: VisionEncoder, space: LatentSpace) -> Cheers:
    kv_heads = language["kv_heads"]
    semantics = {"depth": SEMANTICS_DEPTH, "heads": language["heads"], "kv_heads": kv_heads}
    details = {"depth": DETAILS_DEPTH, "heads": vision.heads, "kv_heads": kv_heads}
    unified = defaults()["unified"].to_dict()
    usual = unified["cheers"]
    stages = {"semantics": usual["semantics"] | semantics, "details": usual["details"] | details}
    released = {"prediction": "velocity", "time": "uniform", "time_shift": 1.0, "fold": FOLD}
    images = make_cheers(
        {**unified, **released, "cheers": usual | stages | OPTIONS},
        width=language["width"],
        vision=vision,
        codec=AutoencoderCodec(space, DARKEST),
        compute_dtype="float32",
    )
    head_dim = language["width"] // language["heads"]
    transformer = Transformer(**language, head_dim=head_dim, qkv_bias=True, qk_norm=False)
    return Cheers(UnifiedModel(transformer=transformer, images=images), space.autoencoder)


def describe(module: Cheers) -> dict[str, Any]:
    """The config.json of `module`."""
    own, vision = module.autoencoder, module.unified.images.tokenizer.vision
    values = {
        "text_config": vars(module.unified.transformer),
        "vision_representation_config": vars(vision)
        | {"image_size": vision.position_rows * vision.patch_size},
        "vae_encoder_config": vars(own)
        | {"width": own.width, "factors": [width // own.width for width in own.widths]},
    }
    values["vae_decoder_config"] = values["vae_encoder_config"]
    sections = {
        name: {key: values[name][ours] for ours, (key, _) in fields.items()}
        for name, fields in SECTIONS.items()
    }
    return {"architectures": ["Cheers"], "model_type": MODEL_TYPE, **sections}
