"""UniCom, Pathway I (default): one transformer reads, and denoises latents in its sequence.

Text is causal, the latents of one image see each other, and the velocity is read from the hidden
states at the latents' own slots (papers: UniCom §3, Transfusion arXiv 2408.11039).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float, Float32

from unicom_jax.core.flow import flow_terms
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.families.images import Noised, Prediction
from unicom_jax.families.latents import LatentImages, latent_parts
from unicom_jax.models.flow_head import make_flow_head


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnicomImages(LatentImages):
    """Noisy latents as vectors of the sequence, and a flow head at their slots.

    Attributes:
      head: maps hidden states (B, draws, n, W) and each draw's time to (B, draws, n, latent_dim).
      prediction: what the head predicts.
    """

    head: Module
    prediction: Prediction = Prediction()

    def specs(self) -> Specs:
        return {"embedding": self.embedding.specs(), "head": self.head.specs()}

    def drawn(self, params: Params, noised: Noised) -> tuple[Float[Array, "B draws n W"], None]:
        latents = noised.noisy.astype(self.compute_dtype)
        return self.embedding.latent(params["embedding"], latents, noised.time, noised.grids), None

    def velocity(
        self, params: Params, condition: Float[Array, "B draws n W"], noised: Noised, aux: None
    ) -> Float32[Array, "B draws n d"]:
        given = self.head(params["head"], condition, noised.time)
        return self.prediction.velocity(given, noised)

    def loss_terms(
        self, params: Params, condition: Float[Array, "B draws n W"], noised: Noised, aux: None
    ) -> LossTerms:
        """`flow`: squared velocity error per channel; "data" prediction uses the time floor."""
        given = self.head(params["head"], condition, noised.time)
        both = self.prediction.and_target(given, noised)
        return flow_terms(*both, noised.real, noised.time[..., None], noised.of)


def make_unicom(unified: Mapping[str, Any], *, width: int, **parts: Any) -> UnicomImages:
    """The image side that `config.unified` describes, for a transformer of `width`.

    Args:
      parts: the other arguments of `latent_parts`.
    """
    shared, head = latent_parts(unified, width=width, **parts), unified["head"]
    return UnicomImages(
        head=make_flow_head(
            head["kind"],
            width,
            shared["embedding"].latent_dim,
            hidden_dim=head["hidden_dim"] or None,
            depth=head["depth"],
            remat=head["remat"],
        ),
        prediction=Prediction(unified["prediction"], unified["time_floor"]),
        **shared,
    )
