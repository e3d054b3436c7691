"""UniCom, Pathway I (default): one transformer reads, and draws noisy latents in its sequence.

Text is causal, the latents of one image see each other, and the velocity is read from the hidden
states at the latents' own slots (papers: UniCom §3, Transfusion arXiv 2408.11039).
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float, Float32

from unicom_jax.core.flow import data_to_velocity, floored_velocities, flow_terms
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.families.images import Noised
from unicom_jax.families.latents import LatentImages

PREDICTIONS = ("velocity", "data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnicomImages(LatentImages):
    """Noisy latents as vectors of the sequence, and a flow head at their slots.

    Attributes:
      head: hidden states (B, draws, n, W) and the time of each draw to (B, draws, n, latent_dim).
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
        return {"embedding": self.embedding.specs(), "head": self.head.specs()}

    def drawn(self, params: Params, noised: Noised) -> tuple[Float[Array, "B draws n W"], None]:
        latents = noised.noisy.astype(self.compute_dtype)
        return self.embedding.latent(params["embedding"], latents, noised.time, noised.grids), None

    def velocity(
        self, params: Params, condition: Float[Array, "B draws n W"], noised: Noised, aux: None
    ) -> Float32[Array, "B draws n d"]:
        predicted = self.head(params["head"], condition, noised.time)
        if self.prediction == "velocity":
            return predicted
        # No floor worth the name: a step to t = 1 then ends at x̂, with no noise left over.
        return data_to_velocity(predicted, noised.noisy, noised.time, floor=1e-6)

    def loss_terms(
        self, params: Params, condition: Float[Array, "B draws n W"], noised: Noised, aux: None
    ) -> LossTerms:
        """`flow`: squared velocity error a channel; of "data" prediction weighted by the floor."""
        if self.prediction == "velocity":
            return super().loss_terms(params, condition, noised, aux)
        predicted = self.head(params["head"], condition, noised.time)
        both = floored_velocities(
            predicted, noised.clean, noised.noisy, noised.time, self.time_floor
        )
        return flow_terms(*both, noised.real, noised.time[..., None], noised.of)
