"""A family that shares no habit with UniCom's, in one file: what a new family has to write.

- Four latents stand in one slot (`unified.fold=2`).
- The encoder of pictures is trained, inside the loss.
- Slots do not get the time; only the head does.
- The head looks at a whole image at once.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from unicom_jax.core.layers import Linear, Mlp, TimeEmbedding
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import VISION, build_codec, build_encoder
from unicom_jax.families.family import Family, Subtree
from unicom_jax.families.images import FlowTime, ImageModel, noise_draws
from unicom_jax.models.codec import Codec
from unicom_jax.models.vision_encoder import VisionEncoder

FOLD = 4  # latents of a slot


@flax.struct.dataclass
class Pictures:
    """Pixels in [-1, 1], for the encoder that is trained, and latents of the frozen codec."""

    pixels: jax.Array  # (B, M, N, C)
    latents: jax.Array  # (B, M, N, d)
    grids: jax.Array  # (B, M, 2)


@dataclasses.dataclass(frozen=True)
class ToyImages(ImageModel):
    """For square pictures of one size, `tokens` latents each."""

    vision: VisionEncoder
    codec: Codec
    width: int
    tokens: int
    flow_time: FlowTime = FlowTime()

    @property
    def parts(self):
        dim, patch = self.codec.latent_dim, self.vision.patch_dim
        return {
            "eye": Mlp(FOLD * patch, self.width, self.width),
            "sketch": Linear(FOLD * dim, self.width, axes=(None, "embed")),
            "time": TimeEmbedding(self.width),
            "head": Mlp(self.tokens // FOLD * self.width, self.width, self.tokens * dim),
        }

    def specs(self):
        return {name: part.specs() for name, part in self.parts.items()}

    def shape_of(self, slots):
        return slots * FOLD, self.codec.latent_dim

    def prepare(self, frozen, batch):
        rows, images = batch.grids.shape[:2]
        pixels = to_unit(batch.patches)
        flat, grids = pixels.reshape(rows * images, *pixels.shape[2:]), batch.grids.reshape(-1, 2)
        features = self.vision(frozen["encoder"], flat, grids)
        latents = self.codec.encode(frozen["codec"], features, grids)
        return Pictures(pixels, latents.reshape(rows, images, *latents.shape[1:]), batch.grids)

    def noise(self, prepared, draws, row_keys):
        return noise_draws(prepared.latents, prepared.grids, draws, row_keys, self.flow_time)

    def looked_at(self, params, prepared):
        seen = self.parts["eye"](params["eye"], folded(prepared.pixels))
        return seen, self.sketch(params, prepared.latents)

    def drawn(self, params, noised):
        return self.sketch(params, noised.noisy), None

    def sketch(self, params, latents):
        return self.parts["sketch"](params["sketch"], folded(latents))

    def condition(self, params, hidden, grids):
        return hidden.reshape(*hidden.shape[:2], -1)  # all slots of an image together

    def velocity(self, params, condition, noised, aux):
        when = self.parts["time"](params["time"], noised.time)
        slots_and_time = condition + jnp.tile(when, self.tokens // FOLD).astype(condition.dtype)
        return self.parts["head"](params["head"], slots_and_time).reshape(noised.noisy.shape)


def folded(tokens: jax.Array) -> jax.Array:
    """(B, M, N, c) of a square raster -> (B, M, N / 4, 4 c): squares of 2 x 2 side by side."""
    side = round(tokens.shape[2] ** 0.5)
    square = tokens.reshape(*tokens.shape[:2], side // 2, 2, side // 2, 2, tokens.shape[-1])
    square = square.transpose(0, 1, 2, 4, 3, 5, 6)
    return square.reshape(*tokens.shape[:2], -1, FOLD * tokens.shape[-1])


def build_toy(config, transformer) -> ToyImages:
    side = config["data"]["image_size"] // config["data"]["patch"]
    return ToyImages(build_encoder(config).vision, build_codec(config), transformer.width, side**2)


TOY = Family(
    images=build_toy,
    codec=build_codec,
    frozen={"encoder": VISION, "codec": Subtree("codec", ("compressor", "statistics"))},
    in_model={"vision": VISION, "codec": Subtree("codec")},
)
