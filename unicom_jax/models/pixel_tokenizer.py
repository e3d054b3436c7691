"""Cheers' unified tokenizer: latents, clean or noisy, are painted, encoded and compressed.

    z_t ─ autoencoder's decoder (a copy that is trained) ─ X̂ ─ SigLIP ─ LayerNorm
        ─ windows of fold x fold tokens joined ─ Linear, GELU, Linear ─ slots

The patches of X̂, as they enter SigLIP's first block, also go to the flow head (arXiv 2603.12793,
§3). X̂ is the decoder's output and is never clipped.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unicom_jax.core.grids import join_windows
from unicom_jax.core.layers import LayerNorm, Linear, Mlp
from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.core.scopes import in_module
from unicom_jax.models.latent_decoder import LatentDecoder
from unicom_jax.models.vision_encoder import VisionEncoder


@dataclasses.dataclass(frozen=True)
class SlotProjector(Module):
    """Maps fold x fold neighbouring features, each normalised by itself, to a slot's vector."""

    in_dim: int
    out_dim: int
    fold: int = 2

    @property
    def norm(self) -> LayerNorm:
        return LayerNorm(self.in_dim, eps=1e-5)

    @property
    def mlp(self) -> Mlp:
        joined = self.fold**2 * self.in_dim
        return Mlp(joined, joined, self.out_dim, activation="gelu")

    def specs(self) -> Specs:
        return {"norm": self.norm.specs(), "mlp": self.mlp.specs()}

    @in_module("projector")
    def __call__(
        self, params: Params, features: Float[Array, "B N {self.in_dim}"], grids: Int[Array, "B 2"]
    ) -> Float[Array, "B N/{self.fold}**2 {self.out_dim}"]:
        """`grids`: rows and columns of features, multiples of `fold`."""
        normed = self.norm(params["norm"], features)
        return self.mlp(params["mlp"], join_windows(normed, grids, self.fold))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelTokenizer(Module):
    """Maps latents to vectors of slots and to embedded patches.

    Attributes:
      painter: paints patches from latents; a linear layer instead of a decoder is the paper's
        ablation, in which latents go straight into the encoder.
      vision: the image encoder.
      projector: maps the encoder's features to slots.
      compute_dtype: dtype of encoder and projector.
    """

    painter: LatentDecoder | Linear
    vision: VisionEncoder
    projector: SlotProjector
    compute_dtype: str = "float32"

    @property
    def parts(self) -> dict[str, Module]:
        """The parts, by the names of their weights."""
        name = "latent_in" if isinstance(self.painter, Linear) else "decoder"
        return {name: self.painter, "vision": self.vision, "projector": self.projector}

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self.parts.items()}

    def __call__(
        self, params: Params, latents: Float[Array, "B N d"], grids: Int[Array, "B 2"]
    ) -> tuple[Float[Array, "B n W"], Float[Array, "B N V"]]:
        """Vectors of the n = N / fold² slots, and the embedded patches that SigLIP's blocks read.

        Args:
          latents: normalised, in raster order.
          grids: their rows and columns; (0, 0): no image.
        """
        if isinstance(self.painter, Linear):
            patches = self.painter(params["latent_in"], latents.astype(self.compute_dtype))
        else:
            # For an absent image one patch is painted: a norm over nothing would give NaN, also in
            # the gradients of the weights.
            patches = self.painter(params["decoder"], latents, jnp.maximum(grids, 1))
        embedded, features = self.vision.embedding_and_features(
            params["vision"], patches.astype(self.compute_dtype), grids
        )
        return self.projector(params["projector"], features, grids), embedded
