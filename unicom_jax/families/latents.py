"""What both UniCom pathways share: frozen features and latents, read and noised.

pixels ─ encoder ─ features Z ─ compressor ─ latents z̃        frozen, once per picture
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from unicom_jax.core.activations import ROWS, place
from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.grids import token_places
from unicom_jax.core.layers import Linear, Mlp, TimeEmbedding, place_embedding
from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.images import FlowTime, ImageModel, Noised, noise_draws
from unicom_jax.families.slots import picture_rows
from unicom_jax.models.codec import Codec
from unicom_jax.models.latent_codec import LatentCodec
from unicom_jax.models.vision_encoder import VisionEncoder

UNDERSTANDING = ("features", "latents", "channel_concat", "sequence_concat")


@flax.struct.dataclass
class Prepared:
    """Raw features Z and normalised latents z̃ of a batch's pictures, each with its rows and
    columns."""

    features: Float[Array, "B M N F"]
    latents: Float[Array, "B M n d"]
    grids: Int[Array, "B M 2"]
    latent_grids: Int[Array, "B M 2"]


@dataclasses.dataclass(frozen=True)
class ImageEmbedding(Module):
    """Vectors of image slots.

    UNDERSTAND slots hold a two-layer projection of what `understanding` names: the encoder's
    `features`, the codec's `latents`, both joined along channels (`channel_concat`), or both one
    after the other (`sequence_concat`: the UNDERSTAND slots hold features and CLEAN slots follow).
    CLEAN and NOISY slots hold a linear map of the latents plus an embedding of their flow time
    (t = 1 for clean ones), so a clean image is the end point of the noisy one's path. All vectors
    contain an embedding of their row and column (as in BAGEL): rotary positions only tell how far
    apart two slots are, and a noisy token has no other information about its place.
    """

    feature_dim: int
    latent_dim: int
    width: int
    understanding: str = "features"

    def __post_init__(self) -> None:
        if self.understanding not in UNDERSTANDING:
            raise ValueError(
                f"unified.understanding={self.understanding!r} is not one of "
                f"{', '.join(UNDERSTANDING)}"
            )

    @property
    def projector(self) -> Mlp:
        in_dim = {
            "latents": self.latent_dim,
            "channel_concat": self.feature_dim + self.latent_dim,
        }.get(self.understanding, self.feature_dim)
        return Mlp(in_dim, self.width, self.width)

    @property
    def latent_in(self) -> Linear:
        return Linear(self.latent_dim, self.width, axes=("latent", "embed"))

    @property
    def time(self) -> TimeEmbedding:
        return TimeEmbedding(self.width)

    def specs(self) -> Specs:
        return {
            "projector": self.projector.specs(),
            "latent_in": self.latent_in.specs(),
            "time": self.time.specs(),
        }

    def understood(
        self,
        params: Params,
        features: Float[Array, "B M N {self.feature_dim}"],
        latents: Float[Array, "B M n {self.latent_dim}"],
        grids: Int[Array, "B M 2"],
        latent_grids: Int[Array, "B M 2"],
    ) -> Float[Array, "B M p {self.width}"]:
        """Vectors of pictures; `grids` count features and `latent_grids` latents."""
        match self.understanding:
            case "latents":
                inputs, grids = latents, latent_grids
            case "channel_concat":
                inputs = jnp.concatenate([features, latents], axis=-1)
            case _:
                inputs = features
        return self._placed(self.projector(params["projector"], inputs), grids)

    def latent(
        self,
        params: Params,
        latents: Float[Array, "B draws n {self.latent_dim}"],
        time: Float[Array, "#B #draws"],
        grids: Int[Array, "B draws 2"],
    ) -> Float[Array, "B draws n {self.width}"]:
        """Vectors of latents at their flow time; `grids` are rows and columns of latents."""
        when = self.time(params["time"], time)[:, :, None]
        vectors = self.latent_in(params["latent_in"], latents) + when
        return self._placed(vectors.astype(latents.dtype), grids)

    def _placed(self, vectors: jax.Array, grids: jax.Array) -> jax.Array:
        places = token_places(grids, vectors.shape[2])
        return vectors + place_embedding(places, self.width).astype(vectors.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentImages(ImageModel):
    """Pictures as features and latents of a frozen encoder and codec; subclasses draw them.

    Attributes:
      vision, codec: used only by `prepare`; None if features and latents are given.
    """

    embedding: ImageEmbedding
    vision: VisionEncoder | None = None
    codec: LatentCodec | None = None
    flow_time: FlowTime = FlowTime()
    compute_dtype: str = "float32"

    takes_features = True

    def shape_of(self, slots: int) -> tuple[int, int]:
        return slots, self.embedding.latent_dim

    def prepare(self, frozen: Params, batch: MixedBatch) -> Prepared:
        """Features and latents by `frozen["encoder"]` and `frozen["codec"]`.

        If the batch has features, they are used as they are and the encoder does not run.
        """
        rows, images = batch.grids.shape[:2]
        grids = picture_rows(batch.grids)
        pixels = None if batch.patches is None else to_unit(picture_rows(batch.patches))
        if batch.features is None:
            features = self.vision(frozen["encoder"], pixels.astype(self.compute_dtype), grids)
        else:
            features = picture_rows(batch.features).astype(self.compute_dtype)
        seen = features if self.codec.reads == "features" else pixels
        latents = self.codec.encode(frozen["codec"], seen, grids)
        features = features.reshape(rows, images, *features.shape[1:])
        # Each draw of a row may show any of the row's pictures.
        latents = place(latents, ROWS).reshape(rows, images, *latents.shape[1:])
        return Prepared(features, latents, batch.grids, self.codec.grid(batch.grids))

    def noise(
        self, prepared: Prepared, draws: Int[Array, "B draws"], row_keys: Key[Array, " B"]
    ) -> Noised:
        return noise_draws(prepared.latents, prepared.latent_grids, draws, row_keys, self.flow_time)

    def looked_at(
        self, params: Params, prepared: Prepared
    ) -> tuple[Float[Array, "B M p W"], Float[Array, "B M q W"]]:
        embedding, weights = self.embedding, params["embedding"]
        features, latents = (
            x.astype(self.compute_dtype) for x in (prepared.features, prepared.latents)
        )
        grids, latent_grids = prepared.grids, prepared.latent_grids
        understood = embedding.understood(weights, features, latents, grids, latent_grids)
        return understood, embedding.latent(weights, latents, jnp.ones((1, 1)), latent_grids)


def latent_parts(
    unified: Mapping[str, Any],
    *,
    width: int,
    vision: VisionEncoder,
    codec: Codec,
    compute_dtype: str,
) -> dict[str, Any]:
    """The arguments of `LatentImages` for a transformer of `width`.

    Raises:
      ValueError: a slot is to hold several latents.
    """
    if unified["fold"] != 1:
        raise ValueError(
            f"unified.fold={unified['fold']}: a slot of unified.pathway={unified['pathway']} holds "
            "one latent; set it to 1"
        )
    embedding = ImageEmbedding(
        feature_dim=vision.width,
        latent_dim=codec.latent_dim,
        width=width,
        understanding=unified["understanding"],
    )
    return {
        "embedding": embedding,
        "vision": vision,
        "codec": codec,
        "flow_time": FlowTime(unified["time"], unified["time_shift"]),
        "compute_dtype": compute_dtype,
    }
