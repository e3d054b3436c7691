"""The whole model under the names of its PyTorch twin (`interop/pytorch/modeling_unicom.py`).

ours                        theirs
vision                      vision_model              as Siglip2VisionModel
codec/compressor, ...       compressor, decompressor  as UniTok if it is attention
codec/pixel_decoder         pixel_decoder
codec/statistics            statistics
unified/transformer         language_model            as Qwen2ForCausalLM
unified/embedding, ...      embedding, head           (Pathway II: queries, connector, ...)
autoencoder                 autoencoder               as diffusers' AutoencoderKL or ...Flux2
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from unicom_jax.config import values
from unicom_jax.core.module import Module, Specs
from unicom_jax.families.build import build_codec, build_encoder, build_space, build_unified
from unicom_jax.families.images import ImageModel
from unicom_jax.families.unicom_query import QueryImages
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.interop.layouts import autoencoder, flux, mmdit, projection, qwen, siglip
from unicom_jax.interop.mapping import Rule, Table, linear, norm, prefixed
from unicom_jax.models.autoencoder import Autoencoder
from unicom_jax.models.codec import Codec
from unicom_jax.models.flow_decoder import FlowDecoder
from unicom_jax.models.flow_head import AdaLnHead, LinearHead, MlpHead
from unicom_jax.models.flux_decoder import FluxDecoder
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.models.mmdit_decoder import MMDiTDecoder
from unicom_jax.models.paint_space import LatentSpace
from unicom_jax.models.pixel_decoder import PixelDecoder
from unicom_jax.models.transformer import Transformer
from unicom_jax.models.vision_encoder import VisionEncoder


@dataclasses.dataclass(frozen=True)
class Unicom(Module):
    """All modules that a trained model uses."""

    vision: VisionEncoder
    codec: Codec
    unified: UnifiedModel
    autoencoder: Autoencoder | None = None

    def specs(self) -> Specs:
        parts = {"vision": self.vision, "codec": self.codec, "unified": self.unified}
        if self.autoencoder is not None:
            parts["autoencoder"] = self.autoencoder
        return {name: part.specs() for name, part in parts.items()}

    @property
    def parts(self) -> dict[str, tuple[Module, ...]]:
        """The parts, by name, whose sizes are reported."""
        codec = self.codec
        found = {
            "vision encoder": (self.vision,),
            "compressor and decompressor": (codec.compressor, codec.decompressor),
            "pixel decoder": (codec.pixel_decoder,),
            "language model": (self.unified.transformer,),
        }
        return (
            found if self.autoencoder is None else found | {"KL autoencoder": (self.autoencoder,)}
        )


@dataclasses.dataclass(frozen=True)
class InLatents(Module):
    """All modules that a trained model uses which draws in the latents of an autoencoder."""

    codec: AutoencoderCodec
    unified: UnifiedModel

    autoencoder = None  # for a codec that needs one; here the codec is one itself

    def specs(self) -> Specs:
        return {"codec": self.codec.specs(), "unified": self.unified.specs()}

    @property
    def images(self) -> ImageModel:
        return self.unified.images

    @property
    def parts(self) -> dict[str, tuple[Module, ...]]:
        """The parts, by name, whose sizes are reported."""
        return {"language model": (self.unified.transformer,), "KL autoencoder": (self.codec,)}


def of_run(config: Mapping[str, Any]) -> Unicom:
    """The modules of a run's configuration."""
    unified = build_unified(config)
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
        prefixed(decoder_table(codec.pixel_decoder), "codec/pixel_decoder/", "pixel_decoder."),
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


def mlp(ours: str, theirs: str) -> Table:
    return (*linear(f"{ours}/up", f"{theirs}.fc1"), *linear(f"{ours}/down", f"{theirs}.fc2"))


def _pathway(module: ImageModel) -> Table:
    embedding = (
        *mlp("embedding/projector", "embedding.projector"),
        *linear("embedding/latent_in", "embedding.latent_in"),
        *mlp("embedding/time", "embedding.time"),
    )
    if isinstance(module, QueryImages):
        return (
            *embedding,
            Rule("queries", "queries.weight"),
            *siglip.blocks("connector", "connector.layers.{layer}"),
            *prefixed(decoder_table(module.flow_decoder), "flow_decoder/", "flow_decoder."),
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
        *mlp("time", "time"),
        *mlp("blocks/mlp", f"{block}.mlp"),
        *linear("blocks/modulation", f"{block}.modulation"),
        *linear("modulation", "modulation"),
        *output,
    )


class Foreign(NamedTuple):
    """A pixel decoder whose network is diffusers': its kind, layout and arguments besides sizes."""

    kind: str
    layout: ModuleType
    fields: tuple[str, ...]


FOREIGN: dict[type[FlowDecoder], Foreign] = {
    FluxDecoder: Foreign("flux", flux, ("channels", "feature_dim", "guidance")),
    MMDiTDecoder: Foreign("sd3", mmdit, ("channels", "feature_dim")),
}


def decoder_table(module: FlowDecoder) -> Table:
    """Rules for a decoder that paints tokens or draws latents."""
    if (foreign := FOREIGN.get(type(module))) is not None:
        inner = foreign.layout.table(module.transformer)
        return (*mlp("projector", "projector"), *prefixed(inner, "transformer/", "transformer."))
    block = "blocks.{layer}"
    return (
        *linear("patch", "patch"),
        *mlp("condition", "condition"),
        *mlp("time", "time"),
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
    """Prefixes of names of the tensors that stay in fp32, whatever the type of the others.

    These are the codec, flow times and the flow head, which `UnicomModel` also keeps in fp32. FLUX
    and Stable Diffusion are not among them: they are large, and were trained in bfloat16.
    """
    names = ("compressor.", "decompressor.", "statistics.", "autoencoder.", "head.")
    times = ("embedding.time.", "flow_decoder.time.")
    own = () if type(module.codec.pixel_decoder) in FOREIGN else ("pixel_decoder.",)
    return (*names, *times, *own)


# ---- config.json ------------------------------------------------------------------------------


def describe(module: Unicom, config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of `UnicomConfig` for `module`, made from the run's `config`."""
    codec = module.codec
    own = module.autoencoder
    return {
        "vision": describe_vision(module.vision),
        "language": describe_language(module.unified.transformer),
        "codec": {
            "compressor": config["codec"]["compressor"],
            "feature_dim": module.vision.width,
            "latent_dim": codec.latent_dim,
            "heads": getattr(codec.compressor, "heads", 0),
            "window": codec.compressor.window,
        },
        "pixel_decoder": describe_decoder(codec.pixel_decoder),
        "autoencoder": None if own is None else autoencoder.describe(own),
        "pathway": _describe_pathway(module.unified.images),
        "sequence": describe_sequence(config),
    }


def describe_language(module: Transformer) -> dict[str, Any]:
    """The arguments of `LanguageModel`."""
    return {
        **fields_of(module, "width", "depth", "heads", "kv_heads"),
        **fields_of(module, "vocab_size", "head_dim", "mlp_dim"),
        **fields_of(module, "rope_theta", "norm_eps"),
        **fields_of(module, "qkv_bias", "qk_norm", "tied_head"),
        # Only if there are any: older exports lack the keys.
        **({"logit_softcap": cap} if (cap := module.logit_softcap) else {}),
        **({"rope_sections": sections} if (sections := module.rope_sections) else {}),
        **_describe_scaling(module),
    }


# The fields of `Format` that older exports lack: their configuration key and the implied value.
LATER_FIELDS = {
    "fold": ("unified.fold", 1),
    "positions": ("unified.image_positions", "grid"),
    "unconditional": ("data.unconditional", "empty"),
    "edit_words": ("unified.edit_words", "after"),
}


def describe_sequence(config: Mapping[str, Any]) -> dict[str, Any]:
    """How words and pictures are written: the fields of `Format` in the exported code."""
    found = dict(values(config))
    later = {name: found[key] for name, (key, usual) in LATER_FIELDS.items() if found[key] != usual}
    turns = {name: config["data"][name] for name in ("prompt_open", "prompt_close")}
    return {
        "understanding": config["unified"]["understanding"],
        "edit_source": config["unified"]["edit_source"],
        "pool": config["codec"]["pool"],
        **turns,
        "response_close": config["data"]["response_close"],
        **later,
    }


def fields_of(module: Module, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}


def _describe_scaling(module: Transformer) -> dict[str, Any]:
    """The scaling of rotary positions; empty for unscaled ones."""
    if module.rope_scaling == "none":
        return {}
    return fields_of(module, "rope_scaling", "rope_factor", "rope_length")


def describe_vision(module: VisionEncoder) -> dict[str, Any]:
    return {
        **fields_of(module, "width", "depth", "heads", "mlp_dim", "naflex"),
        "patch": module.patch_size,
        "rows": module.position_rows,
        "cols": module.position_cols,
    }


def describe_decoder(module: FlowDecoder) -> dict[str, Any]:
    """The kind and the arguments of a decoder."""
    if (foreign := FOREIGN.get(type(module))) is None:
        return {"kind": "dit", **_describe_dit(module)}
    return {
        "kind": foreign.kind,
        **fields_of(module, *foreign.fields),
        "hidden_dim": module.projector.hidden_dim,
        "transformer": foreign.layout.describe(module.transformer),
    }


def _describe_dit(module: PixelDecoder) -> dict[str, Any]:
    sizes = fields_of(module, "channels", "feature_dim", "width", "depth", "heads", "mlp_dim")
    return {**sizes, **fields_of(module, "rope_theta", "prediction")}


def _describe_pathway(module: ImageModel) -> dict[str, Any]:
    if isinstance(module, QueryImages):
        return {
            "kind": "query",
            "queries": module.queries,
            "connector_depth": module.connector.depth,
            "flow_decoder": _describe_dit(module.flow_decoder),
        }
    kinds = {LinearHead: ("linear",), MlpHead: ("mlp", "hidden_dim")}
    kinds[AdaLnHead] = ("adaln", "hidden_dim", "depth")
    kind, *fields = kinds[type(module.head)]
    head = {"kind": kind, **fields_of(module.head, *fields)}
    return {"kind": "transfusion", "prediction": module.prediction.kind, "head": head}
