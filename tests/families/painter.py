"""A family over a KL autoencoder, with rows of the tables for it, in the manner of Cheers.

- It draws packed latents of a frozen autoencoder that reads pixels and decodes them at once.
- Four latents stand in one slot (`unified.fold=2`).
- Its vision tower is trained inside the loss, and starts from that of the encoder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flax.struct
import jax
import pytest

from data_pipelines.build import grid_unit, image_policy
from tests.families.toy import FOLD, folded
from tests.models.diffusers_folder import SMALL
from tests.runs.workdirs import begin_run
from tests.tiny import tiny_config
from unicom_jax.config import KEYS
from unicom_jax.core.layers import Linear, Mlp, TimeEmbedding
from unicom_jax.core.pixels import to_unit
from unicom_jax.families import build
from unicom_jax.families.build import VISION, build_encoder
from unicom_jax.families.family import Family, Subtree
from unicom_jax.families.images import FlowTime, ImageModel, noise_draws
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.models.paint_space import LatentSpace
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.runs.stages import PARTS, STAGES, Part, StageSpec

CHOSEN = {
    "unified__pathway": "painter",
    "unified__fold": 2,
    "data__image_size": 64,
    "data__scenes__sizes": ((64, 64),),
    "stages": ("pretrain",),
    "evaluation__batch_size": 2,
}


@flax.struct.dataclass
class Pictures:
    pixels: jax.Array  # (B, M, N, C), in [-1, 1]
    latents: jax.Array  # (B, M, N, d)
    grids: jax.Array  # (B, M, 2)


@dataclasses.dataclass(frozen=True)
class PainterImages(ImageModel):
    """For square pictures. The time is in the head alone, as in Cheers."""

    vision: VisionEncoder
    codec: AutoencoderCodec
    width: int
    flow_time: FlowTime = FlowTime()

    @property
    def parts(self):
        dim = FOLD * self.codec.latent_dim
        return {
            "vision": self.vision,
            "eye": Linear(FOLD * self.vision.width, self.width, axes=(None, "embed")),
            "sketch": Linear(dim, self.width, axes=(None, "embed")),
            "time": TimeEmbedding(self.width),
            "head": Mlp(self.width, self.width, dim),
        }

    def specs(self):
        return {name: part.specs() for name, part in self.parts.items()}

    def shape_of(self, slots):
        return slots * FOLD, self.codec.latent_dim

    def prepare(self, frozen, batch):
        pixels = to_unit(batch.patches)
        flat = pixels.reshape(-1, *pixels.shape[2:])
        latents = self.codec.encode(frozen["kl"], flat, batch.grids.reshape(-1, 2))
        return Pictures(pixels, latents.reshape(*pixels.shape[:3], -1), batch.grids)

    def noise(self, prepared, draws, row_keys):
        return noise_draws(prepared.latents, prepared.grids, draws, row_keys, self.flow_time)

    def looked_at(self, params, prepared):
        shape, grids = prepared.pixels.shape, prepared.grids.reshape(-1, 2)
        flat = prepared.pixels.reshape(-1, *shape[2:])
        features = self.vision(params["vision"], flat, grids).reshape(*shape[:3], -1)
        return self.parts["eye"](params["eye"], folded(features)), self.sketch(
            params, prepared.latents
        )

    def drawn(self, params, noised):
        return self.sketch(params, noised.noisy), None

    def sketch(self, params, latents):
        return self.parts["sketch"](params["sketch"], folded(latents))

    def velocity(self, params, condition, noised, aux):
        when = self.parts["time"](params["time"], noised.time)[:, :, None]
        speed = self.parts["head"](params["head"], condition + when.astype(condition.dtype))
        return unfolded(speed)


def unfolded(slots: jax.Array) -> jax.Array:
    """The inverse of `folded`."""
    side = round(slots.shape[2] ** 0.5)
    square = slots.reshape(*slots.shape[:2], side, side, 2, 2, -1).transpose(0, 1, 2, 4, 3, 5, 6)
    return square.reshape(*slots.shape[:2], -1, square.shape[-1])


def build_kl(config) -> AutoencoderCodec:
    patch, ragged = config["data"]["patch"], config["data"]["policy"].startswith("bucket")
    canvas = image_policy(config).canvas(patch, grid_unit(config))
    return AutoencoderCodec(LatentSpace(SMALL, patch, *canvas, ragged))


def build_painter(config, transformer) -> PainterImages:
    return PainterImages(build_encoder(config).vision, build_kl(config), transformer.width)


def register(patch: pytest.MonkeyPatch) -> None:
    """The rows: a family, a choice of its key, and a part that some stage trains."""
    family = Family(
        images=build_painter,
        codec=build_kl,
        frozen={"kl": Subtree("kl")},
        starts_from=lambda config: {"vision": VISION},
        in_model={"codec": Subtree("kl")},
    )
    key = KEYS["unified.pathway"]
    known = dataclasses.replace(key, choices=(*key.choices, "painter"))
    patch.setitem(build.FAMILIES, "painter", family)
    patch.setitem(KEYS, "unified.pathway", known)
    patch.setitem(PARTS, "kl", Part(build_kl, lambda config: ""))
    stage = StageSpec("kl", "kl", "codec", "pictures", lambda config, name: 0)
    patch.setitem(STAGES, "kl", stage)


def begin(workdir: Path, *parts: str, **overrides) -> Path:
    """A workdir with trained parts, of "encoder" and "kl", and without the model itself."""
    made = {"encoder": (build_encoder, 0.15), "kl": (build_kl, 0.2)}
    chosen = {part: made[part] for part in parts}
    return begin_run(
        tiny_config(**{**CHOSEN, **overrides}),
        workdir,
        lambda config: {part: (make(config), scale) for part, (make, scale) in chosen.items()},
    )
