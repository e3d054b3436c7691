"""Compressors and decompressors: UniTok's `AttnProjection` under its own names, others under ours.

The attention projection is that of UniTok (arXiv 2502.20321, `models/vqvae.py` of the authors'
repository, where a model has two: `quant_proj` down and `post_quant_proj` up). UniTok keeps a
`zero_k_bias`, which it never trains: it is written as zeros, and read only to check that it is 0.
UniTok's checkpoints are pickles of whole models; a folder here holds one projection in safetensors
with the config.json of `describe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module
from unicom_jax.interop.mapping import Rule, Table, linear, norm
from unicom_jax.models.compressor import (
    AttentionProjection,
    Identity,
    MlpProjection,
    PoolProjection,
    UnpoolProjection,
)

# The kind in config.json: the class and its fields. Our field names are also the keys.
KINDS: dict[str, tuple[type[Module], tuple[str, ...]]] = {
    "attention": (AttentionProjection, ("in_dim", "out_dim", "heads")),
    "mlp": (MlpProjection, ("in_dim", "out_dim")),
    "pool": (PoolProjection, ("in_dim", "out_dim", "window")),
    "unpool": (UnpoolProjection, ("in_dim", "out_dim", "window")),
    "identity": (Identity, ()),
}
MODEL_TYPE = "unicom_projection"


def table(module: Module) -> Table:
    """Rules for all weights of `module`, any of the compressors and decompressors."""
    tables = {
        "attention": _attention,
        "mlp": lambda _: (*linear("mlp/up", "fc1"), *linear("mlp/down", "fc2")),
        "pool": lambda _: linear("linear", "proj"),
        "unpool": lambda _: linear("linear", "proj"),
        "identity": lambda _: (),
    }
    return tables[_kind(module)](module)


def _attention(module: AttentionProjection) -> Table:
    inner = max(module.in_dim, module.out_dim)
    return (
        *norm("norm1", "norm1"),
        Rule("attention/q_bias", "attn.q_bias"),
        Rule("attention/v_bias", "attn.v_bias"),
        Rule((), "attn.zero_k_bias", shape=(inner,)),
        Rule("attention/qkv", "attn.qkv.weight", axes=(1, 0)),
        *linear("attention/output", "attn.proj"),
        *linear("linear", "proj"),
        *norm("norm3", "norm3"),
        *norm("norm2", "norm2"),
        *norm("mlp/norm", "mlp.norm"),
        *linear("mlp/gate", "mlp.w0"),
        *linear("mlp/up", "mlp.w1"),
        *linear("mlp/down", "mlp.w2"),
    )


def _kind(module: Module) -> str:
    return next(kind for kind, (made, _) in KINDS.items() if type(module) is made)


def describe(module: Module) -> dict[str, Any]:
    """The config.json of `module`."""
    kind = _kind(module)
    sizes = {field: getattr(module, field) for field in KINDS[kind][1]}
    return {"model_type": MODEL_TYPE, "kind": kind, **sizes}


def module_of(config: Mapping[str, Any], path: Path) -> Module:
    """The projection that a config.json at `path` describes.

    Raises:
      ConfigError: it is not a projection, has an unknown kind, or lacks a size.
    """
    if config.get("model_type") != MODEL_TYPE or config.get("kind") not in KINDS:
        found = config.get("model_type"), config.get("kind")
        raise ConfigError(
            f"{path}: model_type and kind are {found[0]!r} and {found[1]!r}; a projection has "
            f"{MODEL_TYPE!r} and one of {', '.join(KINDS)}"
        )
    made, fields = KINDS[config["kind"]]
    for field in fields:
        if not isinstance(config.get(field), int):
            raise ConfigError(f"{path}: {field} is {config.get(field)!r}; give it as an integer")
    return made(**{field: config[field] for field in fields})
