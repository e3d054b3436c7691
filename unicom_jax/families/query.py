"""Pathway II (the paper's ablation): frozen reader, learnable queries, connector, flow decoder.

The slots where Pathway I puts noisy latents hold learnable queries instead, one a latent token.
They read the frozen transformer's context; a small bidirectional connector turns their hidden
states into conditions; a DiT draws the latents under these conditions. The transformer runs once an
image, only the flow decoder at every step.

A stage without a flow loss (`align`) teaches the reader; later ones leave it as it is.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key

from unicom_jax.core.activations import place
from unicom_jax.core.attention import padding_mask
from unicom_jax.core.batch import MaskIntervals, MixedBatch, Role
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params, ParamSpec, Specs, normal
from unicom_jax.families.pathway import Pathway
from unicom_jax.families.unified import draw_noise, scatter_images
from unicom_jax.models.encoder_stack import EncoderStack
from unicom_jax.models.pixel_decoder import PixelDecoder
from unicom_jax.models.transformer import KVCache


@flax.struct.dataclass
class QueryContext:
    """Conditions of the images to be drawn, and their grids."""

    condition: Float[Array, "B n W"]
    grids: Int[Array, "B 2"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryPathway(Pathway):
    """Frozen transformer + `queries` learnable vectors + connector + flow decoder.

    `connector` blocks see no position: each query has its own vector to tell where it stands.
    `pool`: patches on a side of a latent token's window, to turn patch grids into token grids.
    """

    queries: int
    connector_depth: int
    flow_decoder: PixelDecoder
    pool: int = 1
    connector_remat: str = "none"
    connector_backend: str = "dense"

    @property
    def connector(self) -> EncoderStack:
        width, heads = self.transformer.width, self.transformer.heads
        remat, backend = self.connector_remat, self.connector_backend
        return EncoderStack(width, self.connector_depth, heads, 4 * width, remat, backend)

    def specs(self) -> Specs:
        width = self.transformer.width
        return {
            "transformer": self.transformer.specs(),
            "embedding": self.embedding.specs(),
            "queries": ParamSpec((self.queries, width), (None, "embed"), normal(0.02)),
            "connector": self.connector.specs(),
            "flow_decoder": self.flow_decoder.specs(),
        }

    def frozen(self, *, draws: bool) -> tuple[str, ...]:
        """The reader while it learns to draw; before that, what draws: a reader is taught first."""
        if draws:
            return ("transformer/.*", "embedding/.*")
        return ("queries", "connector/.*", "flow_decoder/.*")

    def _connect(
        self, params: Params, hidden: Float[Array, "B n W"], grids: Int[Array, "B 2"]
    ) -> Float[Array, "B n W"]:
        """Hidden states of the queries to conditions."""
        mask = padding_mask(grids[:, 0] * grids[:, 1], hidden.shape[1])
        return self.connector(params["connector"], hidden, mask)

    def loss_terms(
        self,
        params: Params,
        batch: MixedBatch,
        features: Float[Array, "B M N F"],
        latents: Float[Array, "B M n d"],
        row_keys: Key[Array, " B"],
    ) -> LossTerms:
        """As `TransfusionPathway.loss_terms`; a frozen reader only reports `text`."""
        rows, images, tokens, dim = latents.shape
        hidden = self.embed_clean(params, batch, features, latents)
        queries = place(params["queries"].astype(hidden.dtype))[batch.image_token]
        hidden = jnp.where((batch.roles == Role.NOISY)[..., None], queries, hidden)
        hidden, _ = self.transformer(params["transformer"], hidden, batch.positions, batch.mask)

        def flat(x: jax.Array) -> jax.Array:
            return x.reshape(rows * images, *x.shape[2:])

        drawn = scatter_images(jnp.ones((*hidden.shape[:2], 1)), batch, (images, tokens))[..., 0]
        grids = jnp.where(drawn.any(-1)[..., None], batch.grids // self.pool, 0)
        condition = self._connect(
            params, flat(scatter_images(hidden, batch, (images, tokens))), flat(grids)
        )
        time, noise = draw_noise(latents.shape[1:], row_keys, self.flow_time)
        flow, _ = self.flow_decoder.loss(
            params["flow_decoder"], flat(latents), flat(noise), flat(time), condition, flat(grids)
        )
        return {"flow": flow, **self.text_terms(params, batch, hidden)}

    def begin_drawing(
        self,
        params: Params,
        cache: KVCache,
        positions: Int[Array, "B n 2"],
        mask: MaskIntervals,
        grids: Int[Array, "B 2"],
        start: int | Int[Array, ""],
    ) -> QueryContext:
        """Runs the queries of one image a row once, after a cached prefix. `grids`: token grids."""
        rows, tokens = positions.shape[:2]
        queries = params["queries"][:tokens].astype(self.compute_dtype)
        hidden = jnp.broadcast_to(queries, (rows, *queries.shape))
        hidden, _ = self.transformer(params["transformer"], hidden, positions, mask, cache, start)
        return QueryContext(self._connect(params, hidden, grids), grids)

    def velocity(
        self,
        params: Params,
        context: QueryContext,
        noisy: Float[Array, "B n d"],
        time: Float[Array, " B"],
    ) -> Float32[Array, "B n d"]:
        """Velocity at noisy latents."""
        return self.flow_decoder.velocity(
            params["flow_decoder"], noisy, time, context.condition, context.grids
        )
