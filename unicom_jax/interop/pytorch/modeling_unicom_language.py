"""A decoder of the Qwen2.5 / Qwen3 family with 2-D rotary positions and a mask of two intervals.

Weights are named as in transformers' `Qwen2ForCausalLM` (`qkv_bias`) and `Qwen3ForCausalLM`
(`qk_norm`), of which this is the same function on pure text.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .modeling_unicom_layers import (
    Linear,
    RMSNorm,
    SwiGlu,
    apply_rope,
    attention,
    rope,
    rope_frequencies,
)


@dataclasses.dataclass
class KVCache:
    """Rotated keys and values of every layer, each (B, T, K, D) with T slots a row."""

    keys: list[Tensor]
    values: list[Tensor]


def interval_mask(intervals: Tensor, keys: int) -> Tensor:
    """(B, S, keys) bool: which slots each query sees.

    intervals (B, S, 4) = (context start, context stop, span start, span stop): a query sees the
    slots of both half-open intervals. Four zeros see nothing.
    """
    slots = torch.arange(keys, device=intervals.device)
    start, stop, span, end = (x[..., None] for x in intervals.unbind(-1))
    return ((start <= slots) & (slots < stop)) | ((span <= slots) & (slots < end))


class SelfAttention(nn.Module):
    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        qkv_bias: bool,
        qk_norm: bool,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = Linear(width, heads * head_dim, bias=qkv_bias)
        self.k_proj = Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = Linear(heads * head_dim, width, bias=False)
        self.q_norm = RMSNorm(head_dim, norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, norm_eps) if qk_norm else None

    def project(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, W) -> rotated q (B, S, H, D), rotated k and v (B, S, K, D)."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim))
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return apply_rope(q, *angles), apply_rope(k, *angles), v


class DecoderLayer(GradientCheckpointingLayer):
    """x += Attention(RMSNorm x); x += SwiGLU(RMSNorm x)."""

    def __init__(self, width: int, mlp_dim: int, norm_eps: float, **attention_sizes: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, norm_eps)
        self.self_attn = SelfAttention(width, norm_eps=norm_eps, **attention_sizes)
        self.post_attention_layernorm = RMSNorm(width, norm_eps)
        self.mlp = SwiGlu(width, mlp_dim)

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: tuple[Tensor, Tensor] | None,
        start: int,
    ) -> Tensor:
        q, k, v = self.self_attn.project(self.input_layernorm(hidden), angles)
        if cache is not None:
            stop = start + hidden.shape[1]
            cache[0][:, start:stop], cache[1][:, start:stop] = k, v
            k, v = (kept[:, : mask.shape[-1]] for kept in cache)
        hidden = hidden + self.self_attn.o_proj(attention(q, k, v, mask))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Decoder(nn.Module):
    def __init__(
        self, vocab_size: int, width: int, depth: int, norm_eps: float, **sizes: int
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, norm_eps=norm_eps, **sizes) for _ in range(depth)
        )
        self.norm = RMSNorm(width, norm_eps)


class LanguageModel(nn.Module):
    """Hidden states of words and image tokens alike; `logits` scores the next word."""

    def __init__(
        self,
        vocab_size: int,
        width: int,
        depth: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        mlp_dim: int,
        rope_theta: float,
        qkv_bias: bool,
        qk_norm: bool,
        tied_head: bool,
        norm_eps: float,
        rope_scaling: str = "none",
        rope_factor: float = 1.0,
        rope_length: int = 0,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.rope = head_dim, rope_theta, rope_scaling, rope_factor, rope_length
        self.kv_heads, self.width = kv_heads, width
        self.model = Decoder(
            vocab_size, width, depth, norm_eps,
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp_dim=mlp_dim,
            qkv_bias=qkv_bias, qk_norm=qk_norm,
        )  # fmt: skip
        self.lm_head = None if tied_head else Linear(width, vocab_size, bias=False)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed_tokens(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., W) -> (..., vocab_size) fp32."""
        if self.lm_head is not None:
            return self.lm_head(hidden).float()
        return F.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype)).float()

    def new_cache(self, rows: int, slots: int) -> KVCache:
        weight = self.model.embed_tokens.weight
        shape = (rows, slots, self.kv_heads, self.head_dim)
        fresh = [[weight.new_zeros(shape) for _ in self.model.layers] for _ in range(2)]
        return KVCache(*fresh)

    def forward(
        self,
        hidden: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: KVCache | None = None,
        start: int = 0,
    ) -> Tensor:
        """Runs all layers.

        Args:
          hidden: (B, S, W) embeddings. positions: (B, S, 2) (y, x).
          mask: (B, S, T) bool over the S slots, or over the first T slots of the cache.
          cache: what earlier calls wrote; the new keys and values go to [start, start + S) first.

        Returns:
          (B, S, W) after the final norm.
        """
        frequencies, magnitude = rope_frequencies(*self.rope)
        angles = tuple(magnitude * part for part in rope(positions, frequencies))
        for number, layer in enumerate(self.model.layers):
            kept = None if cache is None else (cache.keys[number], cache.values[number])
            hidden = layer(hidden, angles, mask, kept, start)
        return self.model.norm(hidden)
