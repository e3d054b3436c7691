"""The whole model in the names of its PyTorch twin (`interop/pytorch/modeling_unicom.py`).

ours                        theirs
vision                      vision_model              as Siglip2VisionModel
codec/compressor, ...       compressor, decompressor  as UniTok where it is attention
codec/pixel_decoder         pixel_decoder
codec/statistics            statistics
unified/transformer         language_model            as Qwen2ForCausalLM
unified/embedding, ...      embedding, head           (Pathway II: queries, connector, ...)
autoencoder                 autoencoder               as diffusers' AutoencoderKL or ...Flux2
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module, Specs
from unicom_jax.families.build import build_codec, build_encoder, build_space, build_unified
from unicom_jax.families.images import ImageModel
from unicom_jax.families.unicom import UnicomImages
from unicom_jax.families.unicom_query import QueryImages
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.interop.layouts import autoencoder, flux, projection, qwen, siglip
from unicom_jax.interop.mapping import Rule, Table, linear, norm, prefixed
from unicom_jax.models.autoencoder import Autoencoder
from unicom_jax.models.codec import Codec
from unicom_jax.models.flow_decoder import FlowDecoder
from unicom_jax.models.flow_head import AdaLnHead, LinearHead, MlpHead
from unicom_jax.models.flux_decoder import FluxDecoder
from unicom_jax.models.paint_space import LatentSpace
from unicom_jax.models.pixel_decoder import PixelDecoder
from unicom_jax.models.transformer import Transformer
from unicom_jax.models.vision_encoder import VisionEncoder


@dataclasses.dataclass(frozen=True)
class Unicom(Module):
    """All modules that a trained model is used with."""

    vision: VisionEncoder
    codec: Codec
    unified: UnifiedModel
    autoencoder: Autoencoder | None = None

    def specs(self) -> Specs:
        parts = {"vision": self.vision, "codec": self.codec, "unified": self.unified}
        if self.autoencoder is not None:
            parts["autoencoder"] = self.autoencoder
        return {name: part.specs() for name, part in parts.items()}


def of_run(config: Mapping[str, Any]) -> Unicom:
    """The modules of a run's configuration.

    Raises:
      ConfigError: a family that has no PyTorch twin.
    """
    unified = build_unified(config)
    if not isinstance(unified.images, UnicomImages | QueryImages):
        raise ConfigError(
            f"unified.pathway={config['unified']['pathway']} has no model in PyTorch yet; parts of "
            "it can be exported alone, as its language model with --to=qwen2"
        )
    space = build_space(config)
    return Unicom(
        build_encoder(config).vision,
        build_codec(config),
        unified,
        space.autoencoder if isinstance(space, LatentSpace) else None,
    )


# ---- names ------------------------------------------------------------------------------------


def table(module: Unicom) -> Table:
    """Rules for all weights of `module`."""
    codec, unified = module.codec, module.unified
    tables = [
        prefixed(siglip.table(module.vision), "vision/", "vision_model."),
        prefixed(projection.table(codec.compressor), "codec/compressor/", "compressor."),
        prefixed(projection.table(codec.decompressor), "codec/decompressor/", "decompressor."),
        prefixed(_decoder(codec.pixel_decoder), "codec/pixel_decoder/", "pixel_decoder."),
        (
            Rule("codec/statistics/mean", "statistics.mean"),
            Rule("codec/statistics/std", "statistics.std"),
        ),
        prefixed(qwen.table(unified.transformer), "unified/transformer/", "language_model."),
        prefixed(_pathway(unified.images), "unified/"),
    ]
    if module.autoencoder is not None:
        own = autoencoder.table(module.autoencoder)
        tables.append(prefixed(own, "autoencoder/", "autoencoder."))
    return tuple(rule for rules in tables for rule in rules)


# Names of earlier exports: {old: new}.
OLD_NAMES = {
    "latent_mean": "statistics.mean",
    "latent_std": "statistics.std",
    "queries": "queries.weight",
}


def new_name(name: str) -> str:
    """The name of a tensor today, from its name in an export of any version."""
    return OLD_NAMES.get(name, name)


def twins(module: Unicom) -> dict[str, str]:
    """Tensors that may be there once more: {name: the one it equals}."""
    prefix = "language_model."
    named = qwen.twins(module.unified.transformer)
    return {prefix + name: prefix + other for name, other in named.items()}


def _mlp(ours: str, theirs: str) -> Table:
    return (*linear(f"{ours}/up", f"{theirs}.fc1"), *linear(f"{ours}/down", f"{theirs}.fc2"))


def _pathway(module: ImageModel) -> Table:
    embedding = (
        *_mlp("embedding/projector", "embedding.projector"),
        *linear("embedding/latent_in", "embedding.latent_in"),
        *_mlp("embedding/time", "embedding.time"),
    )
    if isinstance(module, QueryImages):
        return (
            *embedding,
            Rule("queries", "queries.weight"),
            *siglip.blocks("connector", "connector.layers.{layer}"),
            *prefixed(_decoder(module.flow_decoder), "flow_decoder/", "flow_decoder."),
        )
    return (*embedding, *prefixed(_head(module.head), "head/", "head."))


def _head(module: Module) -> Table:
    output = linear("output", "output")
    if isinstance(module, LinearHead):
        return output
    if isinstance(module, MlpHead):
        return (*linear("up", "up"), *output)
    block = "blocks.{layer}"
    return (
        *linear("input", "input"),
        *_mlp("time", "time"),
        *_mlp("blocks/mlp", f"{block}.mlp"),
        *linear("blocks/modulation", f"{block}.modulation"),
        *linear("modulation", "modulation"),
        *output,
    )


def _decoder(module: FlowDecoder) -> Table:
    """Rules for what paints tokens, or draws latents in Pathway II."""
    if isinstance(module, FluxDecoder):
        transformer = prefixed(flux.table(module.transformer), "transformer/", "transformer.")
        return (*_mlp("projector", "projector"), *transformer)
    block = "blocks.{layer}"
    return (
        *linear("patch", "patch"),
        *_mlp("condition", "condition"),
        *_mlp("time", "time"),
        *linear("blocks/modulation", f"{block}.modulation"),
        *linear("blocks/qkv", f"{block}.qkv", bias=False),
        *norm("blocks/query_norm", f"{block}.query_norm", bias=False),
        *norm("blocks/key_norm", f"{block}.key_norm", bias=False),
        *linear("blocks/output", f"{block}.output"),
        *linear("blocks/mlp/gate", f"{block}.mlp.gate_proj", bias=False),
        *linear("blocks/mlp/up", f"{block}.mlp.up_proj", bias=False),
        *linear("blocks/mlp/down", f"{block}.mlp.down_proj", bias=False),
        *linear("modulation", "modulation"),
        *linear("output", "output"),
    )


def kept_in_fp32(module: Unicom) -> tuple[str, ...]:
    """How the names of tensors begin that stay in fp32 whatever type the rest is written in.

    The codec, flow times and the flow head, as `UnicomModel` keeps them too. FLUX is no part of it:
    it is large, and was trained in bfloat16.
    """
    names = ("compressor.", "decompressor.", "statistics.", "autoencoder.", "head.")
    times = ("embedding.time.", "flow_decoder.time.")
    own = () if isinstance(module.codec.pixel_decoder, FluxDecoder) else ("pixel_decoder.",)
    return (*names, *times, *own)


def rounded_paths(module: Unicom) -> frozenset[str]:
    """The weights of ours, by path, that are not of `kept_in_fp32`."""
    kept = kept_in_fp32(module)
    return frozenset(
        path for rule in table(module) if not rule.theirs.startswith(kept) for path in rule.paths
    )


# ---- config.json ------------------------------------------------------------------------------


def describe(module: Unicom, config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of `UnicomConfig` for `module`, made from the run's `config`."""
    codec = module.codec
    own = module.autoencoder
    return {
        "vision": _describe_vision(module.vision),
        "language": {
            **_fields(module.unified.transformer, "width", "depth", "heads", "kv_heads"),
            **_fields(module.unified.transformer, "vocab_size", "head_dim", "mlp_dim"),
            **_fields(module.unified.transformer, "rope_theta", "norm_eps"),
            **_fields(module.unified.transformer, "qkv_bias", "qk_norm", "tied_head"),
            # Only where there is one: older exports lack the key.
            **({"logit_softcap": cap} if (cap := module.unified.transformer.logit_softcap) else {}),
            **_describe_scaling(module.unified.transformer),
        },
        "codec": {
            "compressor": config["codec"]["compressor"],
            "feature_dim": module.vision.width,
            "latent_dim": codec.latent_dim,
            "heads": getattr(codec.compressor, "heads", 0),
            "window": codec.compressor.window,
        },
        "pixel_decoder": _describe_painter(codec.pixel_decoder),
        "autoencoder": None if own is None else autoencoder.describe(own),
        "pathway": _describe_pathway(module.unified.images),
        "sequence": describe_sequence(module, config),
    }


def describe_sequence(module: Unicom, config: Mapping[str, Any]) -> dict[str, Any]:
    """How words and pictures are written: the fields of `Format` in the exported code."""
    turns = {name: config["data"][name] for name in ("prompt_open", "prompt_close")}
    return {
        "understanding": module.unified.images.embedding.understanding,
        "edit_source": config["unified"]["edit_source"],
        "pool": config["codec"]["pool"],
        **turns,
        "response_close": config["data"]["response_close"],
    }


def check_sections(
    found: Mapping[str, Any], module: Unicom, config: Mapping[str, Any], path: Path
) -> None:
    """Refuses a config.json at `path` whose sections differ from what its run's `config` says.

    Raises:
      ConfigError: it names the section.
    """
    for name, section in describe(module, config).items():
        if found.get(name) != json.loads(json.dumps(section)):  # tuples became lists
            raise ConfigError(
                f"{path}: {name} does not agree with run.config below it; the way back needs the "
                "sizes that the model was trained with"
            )


def _fields(module: Module, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


def _describe_scaling(module: Transformer) -> dict[str, Any]:
    """Nothing for the usual rotary positions."""
    if module.rope_scaling == "none":
        return {}
    return _fields(module, "rope_scaling", "rope_factor", "rope_length")


def _describe_vision(module: VisionEncoder) -> dict[str, Any]:
    return {
        **_fields(module, "width", "depth", "heads", "mlp_dim", "naflex"),
        "patch": module.patch_size,
        "rows": module.position_rows,
        "cols": module.position_cols,
    }


def _describe_painter(module: FlowDecoder) -> dict[str, Any]:
    if not isinstance(module, FluxDecoder):
        return {"kind": "dit", **_describe_decoder(module)}
    return {
        "kind": "flux",
        **_fields(module, "channels", "feature_dim", "guidance"),
        "hidden_dim": module.projector.hidden_dim,
        "transformer": flux.describe(module.transformer),
    }


def _describe_decoder(module: PixelDecoder) -> dict[str, Any]:
    sizes = _fields(module, "channels", "feature_dim", "width", "depth", "heads", "mlp_dim")
    return {**sizes, **_fields(module, "rope_theta", "prediction")}


def _describe_pathway(module: ImageModel) -> dict[str, Any]:
    if isinstance(module, QueryImages):
        return {
            "kind": "query",
            "queries": module.queries,
            "connector_depth": module.connector.depth,
            "flow_decoder": _describe_decoder(module.flow_decoder),
        }
    kinds = {LinearHead: ("linear",), MlpHead: ("mlp", "hidden_dim")}
    kinds[AdaLnHead] = ("adaln", "hidden_dim", "depth")
    kind, *fields = kinds[type(module.head)]
    head = {"kind": kind, **_fields(module.head, *fields)}
    return {"kind": "transfusion", "prediction": module.prediction, "head": head}
