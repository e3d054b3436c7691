"""The decoder of the Qwen2.5 / Qwen3 family, with 2-D rotary positions and the two-interval mask.

    hidden ─┬─ RMSNorm ─ attention ─(+)─┬─ RMSNorm ─ SwiGLU ─(+)─ ...  × depth ─ RMSNorm
            └───────────────────────────┘└───────────────────┘

Image and text tokens go through the same weights; they differ only in `positions` and `mask`.
On pure text with a causal mask this is transformers' Qwen2ForCausalLM (`qkv_bias`) or
Qwen3ForCausalLM (`qk_norm`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.activations import ROWS, SLOTS, place
from unicom_jax.core.attention import attention, check_backend
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.layers import Embedding, Linear, RMSNorm, SwiGlu, matmul
from unicom_jax.core.losses import soft_cap
from unicom_jax.core.module import Module, Params, Specs, stack_specs
from unicom_jax.core.positions import RopeScaling, apply_rope, rope
from unicom_jax.core.remat import REMAT_POLICIES, check_remat
from unicom_jax.core.scopes import in_module

# The scope of attention in packed rows, by which `training/flops.py` recognises its products.
ROW_ATTENTION = "row_attention"


@flax.struct.dataclass
class KVCache:
    """Rotated keys, and values, of all layers; T slots per row.

    `states`: last hidden states, for models that also read those; else None.
    """

    k: Float[Array, "L B T K D"]
    v: Float[Array, "L B T K D"]
    states: Float[Array, "1 B T W"] | None = None


@dataclasses.dataclass(frozen=True)
class SelfAttention(Module):
    """Grouped-query self-attention: H query heads share K key heads."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    qk_norm: bool
    norm_eps: float
    backend: str
    block: int | None

    @property
    def query(self) -> Linear:
        return Linear(self.width, self.heads * self.head_dim, self.qkv_bias, ("embed", "heads"))

    @property
    def key(self) -> Linear:
        out_dim = self.kv_heads * self.head_dim
        return Linear(self.width, out_dim, self.qkv_bias, ("embed", "kv_heads"))

    value = key

    @property
    def out(self) -> Linear:
        return Linear(self.heads * self.head_dim, self.width, False, ("heads", "embed"))

    @property
    def head_norm(self) -> RMSNorm:
        return RMSNorm(self.head_dim, self.norm_eps)

    def specs(self) -> Specs:
        specs = {name: getattr(self, name).specs() for name in ("query", "key", "value", "out")}
        if self.qk_norm:
            specs |= {"query_norm": self.head_norm.specs(), "key_norm": self.head_norm.specs()}
        return specs

    def project(
        self,
        params: Params,
        x: Float[Array, "B S {self.width}"],
        cos: Float32[Array, "B S {self.head_dim//2}"],
        sin: Float32[Array, "B S {self.head_dim//2}"],
    ) -> tuple[Float[Array, "B S H D"], Float[Array, "B S K D"], Float[Array, "B S K D"]]:
        """Rotated queries and keys, and values."""
        q, k, v = (
            layer(params[name], x).reshape(*x.shape[:2], heads, self.head_dim)
            for name, layer, heads in (
                ("query", self.query, self.heads),
                ("key", self.key, self.kv_heads),
                ("value", self.value, self.kv_heads),
            )
        )
        if self.qk_norm:
            q = self.head_norm(params["query_norm"], q)
            k = self.head_norm(params["key_norm"], k)
        return apply_rope(q, cos, sin), apply_rope(k, cos, sin), v

    def attend(
        self,
        params: Params,
        q: Float[Array, "B S H D"],
        k: Float[Array, "B T K D"],
        v: Float[Array, "B T K D"],
        mask: MaskIntervals,
    ) -> Float[Array, "B S {self.width}"]:
        # A single query (a decoding step) has few scores and needs no scan over blocks of keys.
        one = q.shape[1] == 1
        backend, block = ("dense", None) if one else (self.backend, self.block)
        with jax.named_scope(ROW_ATTENTION):
            y = attention(q, k, v, mask, backend=backend, block=block, rows=ROWS, slots=SLOTS)
        return self.out(params["out"], y.reshape(*y.shape[:2], -1))


@dataclasses.dataclass(frozen=True)
class Transformer(Module):
    """A stack of equal decoder blocks with token embedding and vocabulary head.

    `embedding_std`: standard deviation of initial token embeddings. Qwen's 0.02 suits a model that
    learns words first; next to image vectors and block outputs of size 1 it makes words too faint.
    `logit_softcap`: bound of the vocabulary's logits, see `core.losses.soft_cap`; 0: none.
    `unroll`: blocks per iteration of the loop over blocks. More than one lets the compiler reorder
    work across blocks, at a proportional cost in compile time; numbers change only by rounding.
    `rope_scaling`, `rope_factor`, `rope_length`: see `core.positions.RopeScaling`.
    `rope_sections`: frequencies that rotate with each coordinate of a position, see
    `core.positions.rope`; (): positions are (y, x).
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    rope_theta: float = 1e6
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_length: int = 0
    rope_sections: tuple[int, ...] = ()
    qkv_bias: bool = True
    qk_norm: bool = False
    tied_head: bool = True
    norm_eps: float = 1e-6
    embedding_std: float = 0.02
    logit_softcap: float = 0.0
    remat: str = "none"
    unroll: int = 1
    attention_backend: str = "dense"
    attention_block: int | None = None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; "
                "every key head serves equally many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} is odd; rotary positions turn channel pairs"
            )
        if self.rope_sections and sum(self.rope_sections) != self.head_dim // 2:
            raise ValueError(
                f"rope_sections={self.rope_sections} sum to {sum(self.rope_sections)}, but "
                f"head_dim={self.head_dim} has {self.head_dim // 2} rotary frequencies"
            )
        check_remat(self.remat)
        if self.logit_softcap < 0:
            raise ValueError(
                f"logit_softcap={self.logit_softcap}: give a bound above 0, 0 for none"
            )
        if self.unroll < 1:
            raise ValueError(
                f"unroll={self.unroll}: an iteration of the loop computes at least 1 block"
            )
        check_backend(self.attention_backend, self.attention_block)
        RopeScaling(self.rope_scaling, self.rope_factor, self.rope_length)  # checks them

    @property
    def scaling(self) -> RopeScaling:
        return RopeScaling(self.rope_scaling, self.rope_factor, self.rope_length)

    @property
    def rope_axes(self) -> int:
        """Coordinates of a position."""
        return len(self.rope_sections) or 2

    def text_positions(self, index: Int[Array, "*B"]) -> Int[Array, "*B {self.rope_axes}"]:
        """Positions of text tokens, which are equal along all axes."""
        return jnp.broadcast_to(index[..., None], (*index.shape, self.rope_axes))

    @property
    def embedding(self) -> Embedding:
        return Embedding(self.vocab_size, self.width, self.embedding_std)

    @property
    def self_attention(self) -> SelfAttention:
        return SelfAttention(
            self.width, self.heads, self.kv_heads, self.head_dim, self.qkv_bias, self.qk_norm,
            self.norm_eps, self.attention_backend, self.attention_block,
        )  # fmt: skip

    @property
    def mlp(self) -> SwiGlu:
        return SwiGlu(self.width, self.mlp_dim)

    @property
    def norm(self) -> RMSNorm:
        return RMSNorm(self.width, self.norm_eps)

    @property
    def head(self) -> Linear:
        return Linear(self.width, self.vocab_size, bias=False, axes=("embed", "vocab"))

    def block_specs(self) -> Specs:
        return {
            "attention_norm": self.norm.specs(),
            "attention": self.self_attention.specs(),
            "mlp_norm": self.norm.specs(),
            "mlp": self.mlp.specs(),
        }

    def specs(self) -> Specs:
        specs = {
            "embedding": self.embedding.specs(),
            "blocks": stack_specs(self.block_specs(), self.depth),
            "norm": self.norm.specs(),
        }
        if not self.tied_head:
            specs["head"] = self.head.specs()
        return specs

    @in_module("embedding")
    def embed(
        self, params: Params, tokens: Int[Array, "B S"], dtype: Any = None
    ) -> Float[Array, "B S {self.width}"]:
        """Vectors of token ids, in `dtype` (by default the table's)."""
        return self.embedding(params["embedding"], tokens, dtype)

    def head_weights(self, params: Params) -> Params:
        """The part of `params` that `logits` reads; also accepts `specs()`."""
        name = "embedding" if self.tied_head else "head"
        return {name: params[name]}

    def logits(
        self, params: Params, hidden: Float[Array, "*B {self.width}"]
    ) -> Float32[Array, "*B {self.vocab_size}"]:
        """Next-token logits of final hidden states."""
        if self.tied_head:
            scores = self.embedding.attend(params["embedding"], hidden)
        else:
            scores = matmul(hidden, params["head"]["kernel"], jnp.float32)
        return soft_cap(scores, self.logit_softcap)

    def init_cache(
        self, batch: int, slots: int, dtype: Any = jnp.float32, *, states: bool = False
    ) -> KVCache:
        """An empty cache; `states`: with room for last hidden states."""
        shape = (self.depth, batch, slots, self.kv_heads, self.head_dim)
        held = jnp.zeros((1, batch, slots, self.width), dtype) if states else None
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), held)

    @in_module("transformer")
    def __call__(
        self,
        params: Params,
        hidden: Float[Array, "B S {self.width}"],
        positions: Int[Array, "B S {self.rope_axes}"],
        mask: MaskIntervals,
        cache: KVCache | None = None,
        start: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B S {self.width}"], KVCache | None]:
        """Runs all blocks.

        Args:
          hidden: embeddings; their dtype is the compute dtype.
          positions: (y, x), or a coordinate for each of `rope_sections`.
          mask: intervals over the S slots or, with a cache, over its T slots.
          cache: None, or the cache of earlier calls. The new keys and values are written to its
            slots [start, start + S) before the queries read it.
          start: first slot to write; may be traced, in which case S slots must be free there.

        Returns:
          Hidden states after the final norm, and the updated cache (None without one).
        """
        angles = rope(positions, self.head_dim, self.rope_theta, self.scaling, self.rope_sections)
        if cache is None:
            hidden = self._run(params["blocks"], hidden, angles, mask)
            return self.norm(params["norm"], hidden), None
        _check_room(cache, hidden, start)
        hidden, filled = self._run_cached(params["blocks"], hidden, angles, mask, cache, start)
        hidden = self.norm(params["norm"], hidden)
        if cache.states is not None:
            filled = filled.replace(states=_write(cache.states, hidden, 0, start))
        return hidden, filled

    def _run(self, blocks: Params, hidden: jax.Array, angles: tuple, mask: MaskIntervals):
        def block(hidden, params):
            hidden = place(hidden, ROWS, SLOTS)
            q, k, v = self._project(params, hidden, angles)
            return self._finish(params, hidden, q, k, v, mask), None

        block = REMAT_POLICIES[self.remat](block)
        return jax.lax.scan(block, hidden, blocks, unroll=self.unroll)[0]

    def _run_cached(self, blocks, hidden, angles, mask, cache, start):
        def block(carry, layer_and_params):
            hidden, keys, values = carry
            layer, params = layer_and_params
            q, k, v = self._project(params, hidden, angles)
            keys = _write(keys, k, layer, start)
            values = _write(values, v, layer, start)
            k, v = (
                jax.lax.dynamic_index_in_dim(x, layer, keepdims=False).astype(hidden.dtype)
                for x in (keys, values)
            )
            return (self._finish(params, hidden, q, k, v, mask), keys, values), None

        # The cache is carried, not scanned over, so that XLA updates it in place.
        carry = (hidden, cache.k, cache.v)
        (hidden, k, v), _ = jax.lax.scan(block, carry, (jnp.arange(self.depth), blocks))
        return hidden, KVCache(k, v)

    def _project(self, params: Params, hidden: jax.Array, angles: tuple):
        normed = self.norm(params["attention_norm"], hidden)
        return self.self_attention.project(params["attention"], normed, *angles)

    def _finish(self, params: Params, hidden: jax.Array, q, k, v, mask: MaskIntervals) -> jax.Array:
        hidden = hidden + self.self_attention.attend(params["attention"], q, k, v, mask)
        return hidden + self.mlp(params["mlp"], self.norm(params["mlp_norm"], hidden))


def _write(cache: jax.Array, new: jax.Array, layer: jax.Array, start: int | jax.Array) -> jax.Array:
    """Puts new (B, S, ...) into slots [start, start + S) of one layer of cache (L, B, T, ...)."""
    index = (layer, 0, start, *[0] * (cache.ndim - 3))
    return jax.lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), index)


def _check_room(cache: KVCache, hidden: jax.Array, start: int | jax.Array) -> None:
    batch, slots = cache.k.shape[1:3]
    if batch != hidden.shape[0]:
        raise ValueError(f"the cache holds {batch} rows but hidden has {hidden.shape[0]}")
    stop = hidden.shape[1] + (start if isinstance(start, int) else 0)
    if stop > slots:
        raise ValueError(
            f"the cache has {slots} slots, too few to write up to {stop}; make it longer"
        )


_QWEN2_5 = partial(Transformer, vocab_size=151_936)
_QWEN3 = partial(Transformer, vocab_size=151_936, head_dim=128, qkv_bias=False, qk_norm=True)

# The published models' sizes, by name; call an entry, with overrides if wanted.
TRANSFORMER_SIZES: dict[str, Callable[..., Transformer]] = {
    "qwen2.5-0.5b": partial(
        _QWEN2_5, width=896, depth=24, heads=14, kv_heads=2, head_dim=64, mlp_dim=4864
    ),
    "qwen2.5-1.5b": partial(
        _QWEN2_5, width=1536, depth=28, heads=12, kv_heads=2, head_dim=128, mlp_dim=8960
    ),
    "qwen2.5-3b": partial(
        _QWEN2_5, width=2048, depth=36, heads=16, kv_heads=2, head_dim=128, mlp_dim=11008
    ),
    "qwen2.5-7b": partial(
        Transformer,
        vocab_size=152_064,
        width=3584,
        depth=28,
        heads=28,
        kv_heads=4,
        head_dim=128,
        mlp_dim=18944,
        tied_head=False,
    ),  # fmt: skip
    "qwen3-0.6b": partial(_QWEN3, width=1024, depth=28, heads=16, kv_heads=8, mlp_dim=3072),
    "qwen3-1.7b": partial(_QWEN3, width=2048, depth=28, heads=16, kv_heads=8, mlp_dim=6144),
    "qwen3-4b": partial(_QWEN3, width=2560, depth=36, heads=32, kv_heads=8, mlp_dim=9728),
}
