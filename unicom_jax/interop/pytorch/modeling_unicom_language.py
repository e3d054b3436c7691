"""A decoder of the Qwen2.5 / Qwen3 family with rotary positions in two or three dimensions and a
mask of two intervals.

Weights are named as in transformers' `Qwen2ForCausalLM` (`qkv_bias`) and `Qwen3ForCausalLM`
(`qk_norm`), of which this is the same function on pure text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .modeling_unicom_layers import (
    Attention,
    RMSNorm,
    SwiGlu,
    apply_rope,
    rope,
    rope_frequencies,
)


def interval_mask(intervals: Tensor, keys: int) -> Tensor:
    """(B, S, keys) bool: which slots each query sees.

    intervals (B, S, 4) = (context start, context stop, span start, span stop): a query sees the
    slots of both half-open intervals. Four zeros see nothing.
    """
    slots = torch.arange(keys, device=intervals.device)
    start, stop, span, end = (x[..., None] for x in intervals.unbind(-1))
    return ((start <= slots) & (slots < stop)) | ((span <= slots) & (slots < end))


class SelfAttention(Attention):
    """Grouped-query attention; `layer` is its number in the cache."""

    def __init__(
        self,
        layer: int,
        width: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        qkv_bias: bool,
        qk_norm: bool,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, head_dim
        self.q_proj = nn.Linear(width, heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)
        self.q_norm = RMSNorm(head_dim, norm_eps) if qk_norm else None
        self.k_norm = RMSNorm(head_dim, norm_eps) if qk_norm else None

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: Cache | None,
        keep: bool,
    ) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim))
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, *angles), apply_rope(k, *angles)
        if cache is not None:
            k, v = self._with_cached(k, v, cache, keep)
            if (spare := k.shape[1] - mask.shape[-1]) > 0:  # slots that a static cache has ready
                mask = nn.functional.pad(mask, (0, spare), value=False)
        return self.o_proj(self.mix(q, k, v, mask))

    def _with_cached(self, k: Tensor, v: Tensor, cache: Cache, keep: bool) -> tuple[Tensor, Tensor]:
        """All keys and values (B, T, K, D); the new ones are added to the cache if `keep`."""
        k, v = k.transpose(1, 2), v.transpose(1, 2)  # as transformers' caches have them
        if keep:
            k, v = cache.update(k, v, self.layer)
        else:
            held = cache.layers[self.layer]
            k, v = torch.cat([held.keys, k], dim=2), torch.cat([held.values, v], dim=2)
        return k.transpose(1, 2), v.transpose(1, 2)


class DecoderLayer(GradientCheckpointingLayer):
    """x += Attention(RMSNorm x); x += SwiGLU(RMSNorm x)."""

    def __init__(
        self, layer: int, width: int, mlp_dim: int, norm_eps: float, **attention_sizes: int
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, norm_eps)
        self.self_attn = SelfAttention(layer, width, norm_eps=norm_eps, **attention_sizes)
        self.post_attention_layernorm = RMSNorm(width, norm_eps)
        self.mlp = SwiGlu(width, mlp_dim)

    def forward(
        self,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor,
        cache: Cache | None,
        keep: bool,
    ) -> Tensor:
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn(normed, angles, mask, cache, keep)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Decoder(nn.Module):
    def __init__(
        self, vocab_size: int, width: int, depth: int, norm_eps: float, **sizes: int
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(
            DecoderLayer(number, width, norm_eps=norm_eps, **sizes) for number in range(depth)
        )
        self.norm = RMSNorm(width, norm_eps)


class LanguageModel(nn.Module):
    """Hidden states of words and image tokens alike; `logits` scores the next word.

    A tied head (`tied_head`) is tied by transformers, see `UnicomModel._tied_weights_keys`.
    """

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
        logit_softcap: float = 0.0,
        rope_sections: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.logit_softcap, self.rope_sections = logit_softcap, rope_sections
        self.rope = head_dim, rope_theta, rope_scaling, rope_factor, rope_length
        self.model = Decoder(
            vocab_size, width, depth, norm_eps,
            heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp_dim=mlp_dim,
            qkv_bias=qkv_bias, qk_norm=qk_norm,
        )  # fmt: skip
        self.lm_head = nn.Linear(width, vocab_size, bias=False)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.model.embed_tokens(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., W) -> (..., vocab_size) fp32."""
        scores = self.lm_head(hidden).float()
        cap = self.logit_softcap
        return cap * torch.tanh(scores / cap) if cap else scores

    def forward(
        self,
        hidden: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: Cache | None = None,
        *,
        keep: bool = True,
        states: list[Tensor] | None = None,
    ) -> Tensor:
        """Runs all layers.

        Args:
          hidden: (B, S, W) embeddings. positions: (B, S, coordinates), see `rope`.
          mask: (B, S, T) bool over the slots of the cache, then the S new ones.
          cache: keys and values of earlier calls, each layer's on the device of that layer. The new
            ones are added to it or, if `keep` is false, used in this call only.
          states: a list to which the input of each layer is appended.

        Returns:
          (B, S, W) after the final norm.
        """
        frequencies, magnitude = rope_frequencies(*self.rope)
        turns = rope(positions, frequencies, self.rope_sections)
        angles = tuple(magnitude * part for part in turns)
        for layer in self.model.layers:
            if states is not None:
                states.append(hidden)
            hidden = layer(hidden, angles, mask, cache, keep)
        return self.model.norm(hidden)
