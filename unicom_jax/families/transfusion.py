"""Pathway I (default): noisy latents sit in the sequence and one transformer reads and draws.

Text is causal, the latents of one image see each other, and the velocity is read from the hidden
states at the latents' own slots (papers: UniCom §3, Transfusion arXiv 2408.11039).
"""

from __future__ import annotations

import dataclasses

import flax.struct
from jaxtyping import Array, Float, Float32, Int, Key

from unicom_jax.core.batch import MaskIntervals, MixedBatch
from unicom_jax.core.flow import data_to_velocity, floored_velocities, flow_terms, velocity_to_data
from unicom_jax.core.grids import token_places
from unicom_jax.core.layers import place_embedding
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.families.pathway import Pathway
from unicom_jax.families.unified import add_noise, gather_slots, slot_times
from unicom_jax.models.transformer import KVCache

PREDICTIONS = ("velocity", "data")


@flax.struct.dataclass
class DrawingContext:
    """All that a velocity needs besides the noisy latents; built once an image."""

    cache: KVCache
    positions: Int[Array, "B n 2"]  # rotary
    places: Float32[Array, "B n W"]  # embedded rows and columns
    mask: MaskIntervals  # of the image's slots, in cache slots
    start: int | Int[Array, ""]  # first cache slot of the image


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransfusionPathway(Pathway):
    """One transformer over interleaved text and latents, and a flow head.

    Attributes:
      head: hidden states (..., W) and their times to (..., latent_dim).
      prediction: what the head gives. "velocity" is the papers'; "data" is the clean latent x̂, and
        v = (x̂ - z_t) / (1 - t) follows from it ("JiT": Li & He 2025).
      time_floor: least 1 - t in the loss of "data" prediction; bounds its weight near t = 1.
    """

    head: Module
    prediction: str = "velocity"
    time_floor: float = 0.05

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(
                f"unified.prediction={self.prediction!r} is not one of {', '.join(PREDICTIONS)}"
            )

    def specs(self) -> Specs:
        return {
            "transformer": self.transformer.specs(),
            "embedding": self.embedding.specs(),
            "head": self.head.specs(),
        }

    def frozen(self, *, draws: bool) -> tuple[str, ...]:
        """Weights that a stage does not train, as patterns; `draws`: it has a flow loss."""
        del draws  # Pathway II asks
        return ()

    def loss_terms(
        self,
        params: Params,
        batch: MixedBatch,
        features: Float[Array, "B M N F"],
        latents: Float[Array, "B M n d"],
        row_keys: Key[Array, " B"],
    ) -> LossTerms:
        """Terms `text` (nats a token), `flow` (squared velocity error a channel), `text_accuracy`,
        and parts of `flow` by time.

        `features` and normalised `latents` are of the batch's images.
        """
        noisy = add_noise(batch, latents, row_keys, self.flow_time)
        looks, times = gather_slots(features, batch), noisy.image_time
        hidden = self.embed(params, batch, looks, noisy.latents, times)
        hidden, _ = self.transformer(params["transformer"], hidden, batch.positions, batch.mask)
        predicted = self.head(params["head"], hidden, *slot_times(times, batch))
        target = noisy.target
        if self.prediction == "data":
            clean = velocity_to_data(target, noisy.latents, noisy.time)
            predicted, target = floored_velocities(
                predicted, clean, noisy.latents, noisy.time, self.time_floor
            )
        return {
            **flow_terms(predicted, target, noisy.weights, noisy.time),
            **self.text_terms(params, batch, hidden),
        }

    def begin_drawing(
        self,
        params: Params,
        cache: KVCache,
        positions: Int[Array, "B n 2"],
        mask: MaskIntervals,
        grids: Int[Array, "B 2"],
        start: int | Int[Array, ""],
    ) -> DrawingContext:
        """Prepares for drawing one image a row after a cached prefix."""
        del params  # Pathway II needs them
        places = place_embedding(token_places(grids, positions.shape[1]), self.embedding.width)
        return DrawingContext(cache, positions, places, mask, start)

    def velocity(
        self,
        params: Params,
        context: DrawingContext,
        noisy: Float[Array, "B n d"],
        time: Float[Array, " B"],
    ) -> Float32[Array, "B n d"]:
        """Velocity at noisy latents: only these slots are run."""
        time = time[:, None]
        embedded = self.embedding.latent(
            params["embedding"], noisy.astype(self.compute_dtype), time
        )
        embedded = embedded + context.places
        hidden, _ = self.transformer(
            params["transformer"],
            embedded.astype(self.compute_dtype),
            context.positions,
            context.mask,
            context.cache,
            context.start,
        )
        predicted = self.head(params["head"], hidden, time)
        if self.prediction == "velocity":
            return predicted
        # No floor worth the name: a step to t = 1 then lands on x̂, with no noise left over.
        return data_to_velocity(predicted, noisy, time, floor=1e-6)
