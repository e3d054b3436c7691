"""Attention under a two-interval mask.

`attention` checks the shapes and calls one of the backends listed below. A backend honours the mask
exactly: a query row that sees nothing returns 0 and passes no gradient on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float

from unicom_jax.core.activations import PICTURES, MeshAxes, current_mesh
from unicom_jax.core.attention.chunked import chunked_attention
from unicom_jax.core.attention.dense import dense_attention
from unicom_jax.core.attention.intervals import interval_mask, padding_mask, visible_share
from unicom_jax.core.attention.sharded import sharded_attention
from unicom_jax.core.batch import MaskIntervals

__all__ = [
    "ATTENTION_BACKENDS",
    "attention",
    "check_backend",
    "interval_mask",
    "padding_mask",
    "visible_share",
]

# Memory O(S * T) / O(S * block) / kernels for TPU and NVIDIA whose scores stay on the chip.
ATTENTION_BACKENDS = ("dense", "chunked", "fused")
WIDEST = 256  # largest head_dim of the kernels
CHUNK = 128  # keys in a block; CPU caches favour 64, accelerators 512


def attention(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    mask: MaskIntervals | None = None,
    *,
    backend: str = "dense",
    scale: float | None = None,
    block: int | None = None,
    rows: MeshAxes = PICTURES,
    slots: MeshAxes = (),
) -> Float[Array, "B S H D"]:
    """softmax(scale * q k^T, over the keys that `mask` shows) v, in the dtype of q.

    Scores and softmax are fp32.

    Args:
      q: queries.
      k: keys; H is a multiple of K, and each key head serves H / K consecutive query heads.
      v: values.
      mask: fields (B, S), intervals of key slots 0 ... T; None: every query sees every key.
      backend: one of `ATTENTION_BACKENDS`.
      scale: factor of the scores; None: D ** -0.5.
      block: keys that the chunked backend processes together; None: `CHUNK`. Only for "chunked".
      rows, slots: mesh axes that split B, and S and T; heads are split over `tensor`. They matter
        only where a mesh is set (`core.activations`), and decide only where things are computed.
    """
    check_backend(backend, block)
    _check_shapes(q, k, v, mask)
    if backend == "fused" and q.shape[3] > WIDEST:
        raise ValueError(
            f"attention backend 'fused' takes a head_dim of at most {WIDEST}, got {q.shape[3]}; "
            "use 'chunked'"
        )
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    local = partial(_function(backend, block), scale=scale)
    if (mesh := current_mesh()) is None:
        return local(q, k, v, mask)
    return sharded_attention(local, q, k, v, mask, mesh, rows, slots)


def _function(backend: str, block: int | None) -> Callable[..., jax.Array]:
    if backend == "dense":
        return dense_attention
    if backend == "chunked":
        return partial(chunked_attention, block=CHUNK if block is None else block)
    # Imported here because Pallas takes half a second to import.
    from unicom_jax.core.attention.fused import fused_attention

    return partial(fused_attention, block=CHUNK)


def check_backend(backend: str, block: int | None = None) -> None:
    """Raises a ValueError if no backend of this name takes this block."""
    if backend not in ATTENTION_BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; use one of {ATTENTION_BACKENDS}")
    if block is not None and (backend != "chunked" or block < 1):
        raise ValueError(
            f"attention block={block} with backend={backend!r}: only 'chunked' takes >= 1"
        )


def _check_shapes(q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskIntervals | None) -> None:
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape:
        raise ValueError(
            f"attention needs q (B, S, H, D) and equal k, v (B, T, K, D), got {shapes}"
        )
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention needs one batch size and one head_dim, got {shapes}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{q.shape[2]} query heads do not divide among {k.shape[2]} key heads; "
            "make heads a multiple of kv_heads"
        )
    if mask is not None and any(field.shape != q.shape[:2] for field in jax.tree.leaves(mask)):
        raise ValueError(
            f"mask fields of shapes {[x.shape for x in jax.tree.leaves(mask)]} do not fit "
            f"queries {q.shape[:2]} (batch, slots); give one pair of intervals per query"
        )
