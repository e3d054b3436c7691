"""The codec: compressor, decompressor, pixel decoder and the statistics that normalise latents.

    pixels -> (frozen encoder) -> features Z -> compressor -> raw latents -> normalise -> latents z̃
    latents z̃ -> denormalise -> decompressor -> features Ẑ -> pixel decoder (flow) -> tokens

The tokens are patches of pixels or of autoencoder latents (`models/paint_space.py`).

The statistics are measured once, after the codec is trained (`training/stages/codec.py`); until
then the mean is 0 and the standard deviation 1.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.module import Module, Params, ParamSpec, Specs, ones, zeros
from unicom_jax.core.scopes import in_module
from unicom_jax.models.flow_decoder import FlowDecoder
from unicom_jax.models.latent_codec import LatentCodec


@dataclasses.dataclass(frozen=True)
class Codec(LatentCodec):
    """Features to latents and back, and features to tokens."""

    compressor: Module
    decompressor: Module
    pixel_decoder: FlowDecoder
    latent_dim: int
    pool: int = 1

    @property
    def noise_channels(self) -> int:
        return self.pixel_decoder.channels

    def specs(self) -> Specs:
        statistics = {
            "mean": ParamSpec((self.latent_dim,), (None,), zeros),
            "std": ParamSpec((self.latent_dim,), (None,), ones),
        }
        return {
            "compressor": self.compressor.specs(),
            "decompressor": self.decompressor.specs(),
            "pixel_decoder": self.pixel_decoder.specs(),
            "statistics": statistics,
        }

    @in_module("compressor")
    def compress(
        self, params: Params, features: Float[Array, "B N F"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B n {self.latent_dim}"]:
        """Raw latents, not normalised."""
        features = features.astype(jnp.float32)
        return self.compressor(params["compressor"], features, grids)

    @in_module("decompressor")
    def decompress(
        self,
        params: Params,
        raw_latents: Float[Array, "B n {self.latent_dim}"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N F"]:
        """Features Ẑ of raw latents."""
        return self.decompressor(params["decompressor"], raw_latents, grids)

    def normalise(
        self, params: Params, raw_latents: Float[Array, "*B {self.latent_dim}"]
    ) -> Float[Array, "*B {self.latent_dim}"]:
        statistics = params["statistics"]
        return (raw_latents - statistics["mean"]) / statistics["std"]

    def denormalise(
        self, params: Params, latents: Float[Array, "*B {self.latent_dim}"]
    ) -> Float[Array, "*B {self.latent_dim}"]:
        statistics = params["statistics"]
        return latents * statistics["std"] + statistics["mean"]

    def encode(
        self, params: Params, features: Float[Array, "B N F"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B n {self.latent_dim}"]:
        """Normalised latents z̃: what the unified model sees and draws."""
        return self.normalise(params, self.compress(params, features, grids))

    def decode(
        self,
        params: Params,
        latents: Float[Array, "B n {self.latent_dim}"],
        grids: Int[Array, "B 2"],
        noise: Float[Array, "B N C"],
        steps: int,
        sampler: str = "euler",
    ) -> Float32[Array, "B N C"]:
        """Paints normalised latents.

        Args:
          grids: rows and columns of patches of each picture.
          noise: unit Gaussian; the same noise gives the same picture.
          steps: flow steps.

        Returns:
          Tokens of the paint space; for pixels, patches in [-1, 1] (not clipped).
        """
        condition = self.decompress(params, self.denormalise(params, latents), grids)
        return self.pixel_decoder.sample(
            params["pixel_decoder"], noise, condition, grids, steps, sampler
        )
