"""Pictures as the latents of a frozen autoencoder, for families that draw in them."""

from __future__ import annotations

import flax.struct
import jax
from jaxtyping import Array, Float, Int

from unicom_jax.core.activations import ROWS, place
from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.module import Params
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.slots import picture_rows
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.models.paint_space import AUTOENCODER


@flax.struct.dataclass
class Latents:
    """Normalised latents of the pictures of a batch, and their rows and columns."""

    latents: Float[Array, "B M n d"]
    grids: Int[Array, "B M 2"]


def pictures_in(batch: MixedBatch, pathway: str) -> jax.Array:
    """The patches (B, M, N, C) of a batch's pictures.

    Raises:
      ValueError: it has features instead, which the family cannot read.
    """
    if batch.patches is None:
        raise ValueError(
            f"the batch contains features of an encoder, but unified.pathway={pathway} reads "
            "pixels; pack or load the data without features"
        )
    return batch.patches


def encode_pictures(
    codec: AutoencoderCodec, frozen: Params, batch: MixedBatch, pathway: str
) -> Latents:
    """The latents of a batch's pictures by `frozen["autoencoder"]`, means of the posterior.

    `pathway`: name of the family, for the error of `pictures_in`.
    """
    rows, images = batch.grids.shape[:2]
    pixels = to_unit(picture_rows(pictures_in(batch, pathway)))
    weights = frozen[AUTOENCODER]
    latents = place(codec.encode(weights, pixels, picture_rows(batch.grids)), ROWS)
    latents = latents.reshape(rows, images, *latents.shape[1:])
    return Latents(latents, codec.grid(batch.grids))
