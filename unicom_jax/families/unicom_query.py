"""UniCom, Pathway II (the paper's ablation): frozen reader, learnable queries, connector, decoder.

The slots where Pathway I puts noisy latents hold learnable queries instead, one per latent token.
They read the frozen transformer's context; a small bidirectional connector turns their hidden
states into conditions; a DiT draws the latents under these conditions. The transformer runs once
per image; only the flow decoder runs at every step.

A stage without a flow loss (`align`) trains the reader; later stages leave it unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.attention import padding_mask
from unicom_jax.core.grids import token_places
from unicom_jax.core.layers import place_embedding
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params, ParamSpec, Specs, normal
from unicom_jax.core.scopes import in_module
from unicom_jax.families.images import Noised, Prediction
from unicom_jax.families.latents import LatentImages, latent_parts
from unicom_jax.families.slots import picture_rows
from unicom_jax.models.encoder_stack import EncoderStack
from unicom_jax.models.pixel_decoder import PixelDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryImages(LatentImages):
    """`queries` learnable vectors, a connector and a flow decoder."""

    queries: int
    connector: EncoderStack
    flow_decoder: PixelDecoder

    reads_noise = False

    @property
    def prediction(self) -> Prediction:
        """What the flow decoder predicts."""
        return Prediction(self.flow_decoder.prediction, self.flow_decoder.time_floor)

    def specs(self) -> Specs:
        width = self.embedding.width
        return {
            "embedding": self.embedding.specs(),
            "queries": ParamSpec((self.queries, width), (None, "embed"), normal(0.02)),
            "connector": self.connector.specs(),
            "flow_decoder": self.flow_decoder.specs(),
        }

    def frozen(self, *, draws: bool) -> tuple[str, ...]:
        """The reader in stages that draw; the drawing weights in earlier ones, which train it."""
        if draws:
            return ("transformer/.*", "embedding/.*")
        return ("queries", "connector/.*", "flow_decoder/.*")

    def drawn(self, params: Params, noised: Noised) -> tuple[Float[Array, "B draws n W"], None]:
        """The queries of every draw with their places, whatever its noise.

        Without places, as in the papers, a query would mean a different row and column in each
        aspect ratio, and the comparison with Pathway I, whose latents have places, would be unfair.
        """
        tokens, width = noised.noisy.shape[2], self.embedding.width
        places = place_embedding(token_places(noised.grids, tokens), width)
        return (params["queries"][:tokens] + places).astype(self.compute_dtype), None

    @in_module("connector")
    def condition(
        self, params: Params, hidden: Float[Array, "B draws n W"], grids: Int[Array, "B draws 2"]
    ) -> Float[Array, "B draws n W"]:
        """The connector's output for the queries' hidden states."""
        grids, flat = picture_rows(grids), picture_rows(hidden)
        mask = padding_mask(grids[:, 0] * grids[:, 1], hidden.shape[2])
        return self.connector(params["connector"], flat, mask).reshape(hidden.shape)

    def velocity(
        self, params: Params, condition: Float[Array, "B draws n W"], noised: Noised, aux: None
    ) -> Float32[Array, "B draws n d"]:
        pictures = map(picture_rows, (noised.noisy, noised.time, condition, noised.grids))
        speed = self.flow_decoder.velocity(params["flow_decoder"], *pictures)
        return speed.reshape(noised.noisy.shape)

    def loss_terms(
        self, params: Params, condition: Float[Array, "B draws n W"], noised: Noised, aux: None
    ) -> LossTerms:
        """The decoder's `flow` loss and its parts by time; a frozen reader only reports `text`."""
        parts = (noised.clean, noised.noise, noised.time, condition, noised.grids)
        return self.flow_decoder.loss(params["flow_decoder"], *map(picture_rows, parts))[0]


def make_query(
    unified: Mapping[str, Any], *, width: int, heads: int, queries: int, **parts: Any
) -> QueryImages:
    """The image side that `config.unified` describes, for a transformer of `width`.

    Args:
      heads: number of heads of the connector's attention.
      queries: latent tokens of the largest picture.
      parts: the other arguments of `latent_parts`.
    """
    shared, connector = latent_parts(unified, width=width, **parts), dict(unified["connector"])
    depth, backend = connector.pop("depth"), connector.pop("attention_backend")
    decoder = PixelDecoder(
        channels=shared["embedding"].latent_dim,
        feature_dim=width,
        prediction=unified["prediction"],
        time_floor=unified["time_floor"],
        **unified["flow_decoder"],
    )
    return QueryImages(
        queries=queries,
        connector=EncoderStack(width, depth, heads, 4 * width, backend=backend, **connector),
        flow_decoder=decoder,
        **shared,
    )
