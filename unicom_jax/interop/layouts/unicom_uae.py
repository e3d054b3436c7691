"""A model of the family UAE under the names of its PyTorch twin (`modeling_unicom_uae.py`).

ours                        theirs
codec                       autoencoder               as diffusers' AutoencoderKL or ...Flux2
unified/vision              visual                    as Qwen2.5-VL's image tower
unified/decoder             decoder                   projector, and an SD3Transformer2DModel
unified/transformer         language_model            as Qwen2ForCausalLM
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unicom_jax.core.module import Module
from unicom_jax.families.build import build_autoencoder_codec, build_unified
from unicom_jax.families.uae import UaeImages
from unicom_jax.interop.layouts import autoencoder, qwen, qwen_vl
from unicom_jax.interop.layouts.unicom import (
    InLatents,
    decoder_table,
    describe_decoder,
    describe_language,
    describe_sequence,
    fields_of,
)
from unicom_jax.interop.mapping import Table, prefixed


class UnicomUae(InLatents):
    """All modules that a trained model of UAE uses."""

    @property
    def parts(self) -> dict[str, tuple[Module, ...]]:
        images: UaeImages = self.images
        own = {"image tower": (images.vision,), "MM-DiT": (images.decoder.transformer,)}
        return super().parts | own


def of_run(config: Mapping[str, Any]) -> UnicomUae:
    """The modules of a run's configuration."""
    return UnicomUae(build_autoencoder_codec(config), build_unified(config))


# ---- names ------------------------------------------------------------------------------------


def table(module: UnicomUae) -> Table:
    """Rules for all weights of `module`."""
    images = module.images
    unified = (
        *prefixed(qwen.table(module.unified.transformer), "transformer/", "language_model."),
        *prefixed(qwen_vl.table(images.vision), "vision/"),
        *prefixed(decoder_table(images.decoder), "decoder/", "decoder."),
    )
    return (
        *prefixed(autoencoder.table(module.codec), "codec/", "autoencoder."),
        *prefixed(unified, "unified/"),
    )


def kept_in_fp32(module: UnicomUae) -> tuple[str, ...]:
    """Prefixes of names of the tensors that stay in fp32, whatever the type of the others."""
    del module
    return ("autoencoder.",)


# ---- config.json ------------------------------------------------------------------------------


def describe(module: UnicomUae, config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of `UnicomUaeConfig` for `module`, made from the run's `config`."""
    images, codec = module.images, module.codec
    decoder = describe_decoder(images.decoder)
    del decoder["kind"]  # the family has one
    return {
        "vision": fields_of(images.vision, *qwen_vl.VISION_FIELDS),
        "language": describe_language(module.unified.transformer),
        "codec": {**fields_of(codec, "latent_dim", "darkest"), "patch": codec.space.patch},
        "autoencoder": autoencoder.describe(codec.space.autoencoder),
        "pathway": {"kind": "uae", "decoder": decoder},
        "sequence": describe_sequence(config),
    }
