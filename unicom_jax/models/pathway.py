"""What both pathways do alike: read rows of words and images with one transformer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from unicom_jax.core.activations import own_slots
from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.losses import LossTerms, text_terms
from unicom_jax.core.module import Module, Params
from unicom_jax.models.transformer import KVCache, Transformer
from unicom_jax.models.unified import FlowTime, ImageEmbedding, embed_slots, gather_slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pathway(Module):
    """A transformer and the embedding of image slots; subclasses say how images are drawn.

    `text_chunk`: most slots of a row whose logits exist at once; 0: as `text_terms` chooses.
    """

    transformer: Transformer
    embedding: ImageEmbedding
    flow_time: FlowTime = FlowTime()
    text_chunk: int = 0
    compute_dtype: str = "float32"

    def embed(
        self,
        params: Params,
        batch: MixedBatch,
        features: jax.Array,
        latents: jax.Array,
        time: jax.Array,
    ) -> jax.Array:
        """The input vectors (B, S, W) of all slots; image arrays as for `embed_slots`."""
        text = self.transformer.embed(params["transformer"], batch.tokens)
        text = text.astype(self.compute_dtype)
        return embed_slots(
            self.embedding, params["embedding"], text, batch, features, latents, time
        )

    def embed_clean(
        self, params: Params, batch: MixedBatch, features: jax.Array, latents: jax.Array
    ) -> jax.Array:
        """As `embed`, with every image clean: (B, M, N, feature_dim) and (B, M, N, latent_dim)."""
        time = jnp.ones(latents.shape[:2], jnp.float32)
        return self.embed(
            params, batch, gather_slots(features, batch), gather_slots(latents, batch), time
        )

    def prefill(
        self,
        params: Params,
        batch: MixedBatch,
        features: jax.Array,
        latents: jax.Array,
        cache: KVCache,
        start: jax.Array | int = 0,
    ) -> tuple[jax.Array, KVCache]:
        """Reads slots without noise into the cache at `start`: hidden states (B, S, W) and cache.

        The mask of `batch` speaks of cache slots.
        """
        hidden = self.embed_clean(params, batch, features, latents)
        return self.transformer(
            params["transformer"], hidden, batch.positions, batch.mask, cache, start
        )

    def logits(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Next-token logits (..., V) in fp32."""
        return self.transformer.logits(params["transformer"], hidden)

    def text_terms(self, params: Params, batch: MixedBatch, hidden: jax.Array) -> LossTerms:
        """Terms `text` (nats a token) and `text_accuracy` of hidden states (B, S, W)."""
        return text_terms(
            self.transformer.logits,
            self.transformer.head_weights(params["transformer"]),
            *map(own_slots, (hidden, batch.targets, batch.target_weights)),
            self.text_chunk,
        )
