"""Explains foreign tensors that do not fit a model, so that an error can name the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable

from unicom_jax.interop.tensors import TensorFact

# The first pattern found in a name decides what the tensor is and what to do about it.
KINDS = (
    (
        r"\.(SCB|weight_format|qweight|qzeros|scales|g_idx|absmax|quant_map|quant_state.*|"
        r"weight_scale(_inv)?|weight_zero_point|input_scale|weight_packed|weight_shape)$",
        "belongs to quantised weights; take the checkpoint in bfloat16 or float32",
    ),
    (r"\.lora_[AB]\.", "belongs to a LoRA adapter; merge it into the weights first"),
    (
        r"(rotary_emb\.|\.)inv_freq$",
        "is a stored table of rotary frequencies, which differs from what config.json describes; "
        "correct rope_theta and rope_scaling there",
    ),
    (
        r"\.bias$",
        "is a bias of a layer that has none in this model; take a checkpoint without it",
    ),
    (r"^(fc_norm|projection|logit_scale)\b", "belongs to UniTok's contrastive head, not used here"),
)
QUANTISED = re.compile(KINDS[0][0])
# Types that occur only in quantised weights.
SMALL_TYPES = ("I8", "U8", "I4", "U4", "F8_E4M3", "F8_E5M2", "F4")


def explain_extra(name: str) -> str:
    """What an unexpected tensor is, as the end of a sentence that starts with its name."""
    for pattern, meaning in KINDS:
        if re.search(pattern, name):
            return meaning
    return "has no place in the model; check the sizes in its config.json"


def quantised(names: Iterable[str]) -> str | None:
    """The first name that occurs only in quantised weights."""
    return next((name for name in sorted(names) if QUANTISED.search(name)), None)


def explain_type(fact: TensorFact) -> str:
    """What to do about a tensor of an unsupported type."""
    if fact.dtype in SMALL_TYPES:
        return "its weights are quantised; take the checkpoint in bfloat16 or float32"
    return "convert it to float32 or bfloat16"


def explain_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """What to do about a tensor whose shape differs from that of the config."""
    if name.endswith("attn.proj.weight") and found != wanted and found[0] == found[1]:
        return (
            "UniTok pools the channels of a head down to out_dim before this layer where in_dim / "
            "heads is not out_dim, which is not supported; take a projection with in_dim / heads = "
            "out_dim"
        )
    return "check the sizes in its config.json"
