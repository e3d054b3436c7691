"""What both pathways do alike: read rows of words and images with one transformer."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.activations import own_slots
from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.losses import LossTerms, text_terms
from unicom_jax.core.module import Module, Params
from unicom_jax.families.unified import FlowTime, ImageEmbedding, embed_slots, gather_slots
from unicom_jax.models.transformer import KVCache, Transformer


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
        features: Float[Array, "B S F"],
        latents: Float[Array, "B S d"],
        time: Float[Array, "B M"],
    ) -> Float[Array, "B S W"]:
        """The input vectors of all slots; image arrays as for `embed_slots`."""
        text = self.transformer.embed(params["transformer"], batch.tokens, self.compute_dtype)
        return embed_slots(
            self.embedding, params["embedding"], text, batch, features, latents, time
        )

    def embed_clean(
        self,
        params: Params,
        batch: MixedBatch,
        features: Float[Array, "B M N F"],
        latents: Float[Array, "B M n d"],
    ) -> Float[Array, "B S W"]:
        """As `embed`, with every image clean."""
        time = jnp.ones(latents.shape[:2], jnp.float32)
        return self.embed(
            params, batch, gather_slots(features, batch), gather_slots(latents, batch), time
        )

    def prefill(
        self,
        params: Params,
        batch: MixedBatch,
        features: Float[Array, "B M N F"],
        latents: Float[Array, "B M n d"],
        cache: KVCache,
        start: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B S W"], KVCache]:
        """Reads slots without noise into the cache at `start`: hidden states and cache.

        The mask of `batch` speaks of cache slots.
        """
        hidden = self.embed_clean(params, batch, features, latents)
        return self.transformer(
            params["transformer"], hidden, batch.positions, batch.mask, cache, start
        )

    def logits(self, params: Params, hidden: Float[Array, "*B W"]) -> Float32[Array, "*B V"]:
        """Next-token logits."""
        return self.transformer.logits(params["transformer"], hidden)

    def text_terms(
        self, params: Params, batch: MixedBatch, hidden: Float[Array, "B S W"]
    ) -> LossTerms:
        """Terms `text` (nats a token) and `text_accuracy`."""
        return text_terms(
            self.transformer.logits,
            self.transformer.head_weights(params["transformer"]),
            *map(own_slots, (hidden, batch.targets, batch.target_weights)),
            self.text_chunk,
            self.transformer.head_weights(self.transformer.specs()),
        )
