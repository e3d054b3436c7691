"""A model of the Cheers family under the names of its PyTorch twin (`modeling_unicom_cheers.py`).

ours                        theirs
codec                       autoencoder               as diffusers' AutoencoderKLFlux2
unified/decoder             decoder                   the decoder half of one
unified/vision              vision_model              as SiglipVisionModel
unified/projector           projector
unified/head                head
unified/transformer         language_model            as Qwen2ForCausalLM
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unicom_jax.core.module import Module
from unicom_jax.families.build import build_latents, build_unified
from unicom_jax.families.cheers import CheersImages
from unicom_jax.interop.layouts import autoencoder, qwen, siglip
from unicom_jax.interop.layouts.unicom import (
    InLatents,
    describe_language,
    describe_sequence,
    describe_vision,
    fields_of,
    mlp,
)
from unicom_jax.interop.mapping import Table, linear, norm, prefixed
from unicom_jax.models.latent_decoder import LatentDecoder


class UnicomCheers(InLatents):
    """All modules that a trained model of Cheers uses."""

    @property
    def parts(self) -> dict[str, tuple[Module, ...]]:
        images: CheersImages = self.images
        own = {"vision encoder": (images.tokenizer.vision,), "flow head": (images.head,)}
        painter = images.tokenizer.painter
        if isinstance(painter, LatentDecoder):
            own["decoder"] = (painter,)
        return super().parts | own


def of_run(config: Mapping[str, Any]) -> UnicomCheers:
    """The modules of a run's configuration."""
    return UnicomCheers(build_latents(config), build_unified(config))


# ---- names ------------------------------------------------------------------------------------


def table(module: UnicomCheers) -> Table:
    """Rules for all weights of `module`."""
    tokenizer = module.images.tokenizer
    if isinstance(tokenizer.painter, LatentDecoder):
        painter = prefixed(autoencoder.table(tokenizer.painter), "decoder/", "decoder.")
    else:
        painter = linear("latent_in", "latent_in")
    unified = (
        *prefixed(qwen.table(module.unified.transformer), "transformer/", "language_model."),
        *prefixed(siglip.table(tokenizer.vision), "vision/", "vision_model."),
        *painter,
        *norm("projector/norm", "projector.norm"),
        *mlp("projector/mlp", "projector.mlp"),
        *_head(module.images),
    )
    return (
        *prefixed(autoencoder.table(module.codec), "codec/", "autoencoder."),
        *prefixed(unified, "unified/"),
    )


def _head(module: CheersImages) -> Table:
    tables = []
    for stage in ("semantics", "details"):
        ours, theirs = f"head/{stage}", f"head.{stage}"
        tables += [_stack(ours, theirs), mlp(f"{ours}_time", f"{theirs}_time")]
    if module.head.gate:
        tables.append(mlp("head/gate", "head.gate"))
    if module.head.norm:
        tables.append(norm("head/norm", "head.norm"))
    return tuple(rule for rules in tables for rule in rules)


def _stack(ours: str, theirs: str) -> Table:
    """Rules for a `ModulatedStack`."""
    blocks, block = f"{ours}/blocks", f"{theirs}.blocks.{{layer}}"
    inner = {
        **{f"attention/{n}": f"{n[0]}_proj" for n in ("query", "key", "value", "out")},
        **{f"mlp/{n}": f"mlp.{n}_proj" for n in ("gate", "up", "down")},
    }
    layers = (linear(f"{blocks}/{k}", f"{block}.{v}", bias=False) for k, v in inner.items())
    return (
        *linear(f"{blocks}/modulation", f"{block}.modulation"),
        *norm(f"{blocks}/attention_norm", f"{block}.attention_norm", bias=False),
        *norm(f"{blocks}/mlp_norm", f"{block}.mlp_norm", bias=False),
        *(rule for layer in layers for rule in layer),
        *norm(f"{ours}/norm", f"{theirs}.norm", bias=False),
        *linear(f"{ours}/modulation", f"{theirs}.modulation"),
        *linear(f"{ours}/output", f"{theirs}.output"),
    )


def kept_in_fp32(module: UnicomCheers) -> tuple[str, ...]:
    """Prefixes of names of the tensors that stay in fp32, whatever the type of the others."""
    del module
    return ("autoencoder.", "decoder.", "head.")


# ---- config.json ------------------------------------------------------------------------------


def describe(module: UnicomCheers, config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of `UnicomConfig` for `module`, made from the run's `config`."""
    images, codec = module.images, module.codec
    head, sizes = images.head, ("width", "out_dim", "depth", "heads", "kv_heads")
    return {
        "vision": describe_vision(images.tokenizer.vision),
        "language": describe_language(module.unified.transformer),
        "codec": fields_of(codec, "latent_dim", "darkest"),
        "autoencoder": autoencoder.describe(codec.space.autoencoder),
        "pathway": {
            "kind": "cheers",
            "prediction": images.prediction.kind,
            "pixels": isinstance(images.tokenizer.painter, LatentDecoder),
            **fields_of(head, "fold", "gate", "norm", "positions"),
            "semantics": fields_of(head.semantics, *sizes),
            "details": fields_of(head.details, *sizes),
        },
        "sequence": describe_sequence(config),
    }
