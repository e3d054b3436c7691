"""Cheers: patch details decoupled from semantics (arXiv 2603.12793).

    prepare    frozen autoencoder: packed, normalised latents
    looked_at  clean latents (t = 1) ─ decoder copy ─ SigLIP ─ joined tokens ─ slots
    drawn      z_t alike; SigLIP's embedded patches go to the head
    velocity   hidden states ─ semantics ─ + gate · embedded patches ─ details

A slot holds fold² tokens of a picture. The transformer is not told the time; it sees how noisy a
picture is. A picture that is read and one that is edited are the same vectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.flow import TIME_GRIDS, flow_terms, terms_by_time
from unicom_jax.core.layers import Linear
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params, Specs
from unicom_jax.families.autoencoded import Latents, encode_pictures
from unicom_jax.families.images import FlowTime, ImageModel, Noised, Prediction, noise_draws
from unicom_jax.families.slots import each_alone, picture_rows, side_by_side, take, used_first
from unicom_jax.models.cascaded_head import Cascade, CascadedHead
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.models.latent_decoder import LatentDecoder
from unicom_jax.models.modulated_stack import ModulatedStack
from unicom_jax.models.pixel_tokenizer import PixelTokenizer, SlotProjector
from unicom_jax.models.vision_encoder import VisionEncoder

# What the paper's first stage keeps as it is, for a stage's `freeze`: it trains the projector, the
# flow head and its gate. Later stages train everything that the family does not hold itself.
FROZEN_AT_FIRST = ("transformer/.*", "decoder/.*", "vision/.*")
GATE_BINS = 10  # of flow time, in which the gate is reported


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheersImages(ImageModel):
    """The image side of Cheers.

    Attributes:
      codec: the frozen autoencoder's, which only `prepare` runs.
      tokenizer: turns latents into tokens, with the trained copy of the autoencoder's decoder.
      head: the cascaded flow head.
      prediction: what the head predicts; in the paper velocities.
      compute_dtype: type of head and slots; times, modulation, norms and velocities are fp32.
    """

    codec: AutoencoderCodec
    tokenizer: PixelTokenizer
    head: CascadedHead
    prediction: Prediction = Prediction()
    flow_time: FlowTime = FlowTime()
    flow_over: str = "drawn"
    dummies: bool = False
    compute_dtype: str = "float32"

    @property
    def time_grids(self) -> tuple[str, ...]:
        """Without the grid that asks for the velocity at t = 1, if the head predicts data."""
        return TIME_GRIDS if self.prediction.kind == "velocity" else TIME_GRIDS[:1]

    def specs(self) -> Specs:
        return {**self.tokenizer.specs(), "head": self.head.specs()}

    def frozen(self, *, draws: bool) -> tuple[str, ...]:
        """SigLIP's pooling, which nothing reads, and measured statistics; without draws the head.

        The paper's first stage holds more: see `FROZEN_AT_FIRST`.
        """
        held = ["vision/head/.*"]
        if "statistics" in self.tokenizer.specs().get("decoder", {}):
            held.append("decoder/statistics/.*")
        return (*held, *(() if draws else ("head/.*",)))

    def shape_of(self, slots: int) -> tuple[int, int]:
        return slots * self.head.fold**2, self.codec.latent_dim

    def prepare(self, frozen: Params, batch: MixedBatch) -> Latents:
        """Latents by `frozen["autoencoder"]`, means of its posterior."""
        return encode_pictures(self.codec, frozen, batch, "cheers")

    def noise(
        self, prepared: Latents, draws: Int[Array, "B draws"], row_keys: Key[Array, " B"]
    ) -> Noised:
        return noise_draws(prepared.latents, prepared.grids, draws, row_keys, self.flow_time)

    def ended(self, prepared: Latents) -> Noised:
        latents, grids = prepared.latents, prepared.grids
        return Noised(latents, jnp.ones(grids.shape[:2]), grids, clean=latents, noise=latents)

    def looked_at(
        self, params: Params, prepared: Latents
    ) -> tuple[Float[Array, "B M s W"], Float[Array, "B M s W"]]:
        seen, _ = self._tokens(params, prepared.latents, prepared.grids)
        return seen, seen

    def drawn(
        self, params: Params, noised: Noised
    ) -> tuple[Float[Array, "B draws s W"], Float[Array, "B draws n V"]]:
        return self._tokens(params, noised.noisy, noised.grids)

    def looked_at_and_drawn(
        self,
        params: Params,
        prepared: Latents,
        noised: Noised,
        read: Bool[Array, "B M"],
        views: int,
    ) -> tuple[tuple[Float[Array, "B M s W"], ...], Float[Array, "B draws s W"], jax.Array]:
        """As for `ImageModel`, in one batch, with at most `views` pictures and draws of each row.

        The decoder and the encoder are most of the work, so what no slot reads is left out. A row
        with more than `views` gets NaN everywhere; packing makes no such row.
        """
        rows, images = read.shape
        latents = jnp.concatenate([prepared.latents, noised.noisy], axis=1)
        grids = jnp.where(read[..., None], prepared.grids, 0)
        grids = jnp.concatenate([grids, noised.grids], axis=1)
        chosen, back = used_first(grids[..., 0] > 0, views)
        tokens = self._tokens(params, *each_alone((take(latents, chosen), take(grids, chosen))))
        vectors, embedded = (take(side_by_side(x, rows), back) for x in tokens)
        full = jnp.sum(grids[..., 0] > 0, axis=1) > chosen.shape[1]
        vectors = jnp.where(full[:, None, None, None], jnp.nan, vectors)
        seen, drawn = vectors[:, :images], vectors[:, images:]
        return (seen, seen), drawn, each_alone(embedded[:, images:])

    def _tokens(
        self, params: Params, latents: jax.Array, grids: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Vectors of slots and embedded patches of latents (B, M, n, d)."""
        found = self.tokenizer(params, picture_rows(latents), picture_rows(grids))
        return jax.tree.map(lambda x: x.reshape(*latents.shape[:2], *x.shape[1:]), found)

    def cascade(
        self, params: Params, hidden: Float[Array, "B draws s W"], noised: Noised, aux: jax.Array
    ) -> Cascade:
        """The head's outputs for all draws, as arrays (B, draws, ...)."""
        hidden = hidden.astype(self.compute_dtype)
        inputs = (hidden, noised.time, aux, noised.grids)
        found = self.head(params["head"], *map(picture_rows, inputs))
        shape = noised.time.shape
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)

    def velocity(
        self, params: Params, condition: Float[Array, "B draws s W"], noised: Noised, aux: Any
    ) -> Float32[Array, "B draws n d"]:
        given = self.cascade(params, condition, noised, aux).prediction
        return self.prediction.velocity(given, noised)

    def loss_terms(
        self, params: Params, condition: Float[Array, "B draws s W"], noised: Noised, aux: Any
    ) -> LossTerms:
        """`flow`: squared velocity error per channel; and the mean size of the gate by flow time,
        which is only reported (in the paper it is small early and larger late)."""
        found = self.cascade(params, condition, noised, aux)
        time = noised.time[..., None]
        both = self.prediction.and_target(found.prediction, noised)
        terms = flow_terms(*both, noised.real, time, noised.of)
        if found.gate is None:
            return terms
        return terms | terms_by_time("gate", abs(found.gate), noised.real, time, GATE_BINS)


def make_cheers(
    unified: Mapping[str, Any],
    *,
    width: int,
    vision: VisionEncoder,
    codec: AutoencoderCodec,
    compute_dtype: str,
) -> CheersImages:
    """The image side that `config.unified` describes, for a transformer of `width`."""
    cheers, fold, space = unified["cheers"], unified["fold"], codec.space
    painter = Linear(space.channels, vision.patch_dim, axes=(None, "embed"))
    if cheers["pixels"]:
        copied = dataclasses.replace(space.autoencoder, remat=cheers["decoder_remat"])
        painter = LatentDecoder(dataclasses.replace(space, autoencoder=copied))
    semantics = ModulatedStack(width=width, out_dim=fold**2 * vision.width, **cheers["semantics"])
    details = ModulatedStack(width=vision.width, out_dim=space.channels, **cheers["details"])
    choices = {name: cheers[name] for name in ("gate", "norm", "positions")}
    return CheersImages(
        codec=codec,
        tokenizer=PixelTokenizer(
            painter=painter,
            vision=vision,
            projector=SlotProjector(vision.width, width, fold),
            compute_dtype=compute_dtype,
        ),
        head=CascadedHead(semantics=semantics, details=details, fold=fold, **choices),
        prediction=Prediction(unified["prediction"], unified["time_floor"]),
        flow_time=FlowTime(unified["time"], unified["time_shift"]),
        flow_over=cheers["flow_over"],
        dummies=cheers["dummies"],
        compute_dtype=compute_dtype,
    )
