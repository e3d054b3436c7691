"""`Reconstructor`: a run's codec, or autoencoder, alone: pictures to latents and back.

A `Generator` has one. For a run without a unified model, `load` makes one on its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.build import sequence_config
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.module import Params
from unicom_jax.core.paths import as_path
from unicom_jax.core.picture import Picture
from unicom_jax.families.build import VISION, build_autoencoder, space_of
from unicom_jax.families.family import pixels
from unicom_jax.inference import engine
from unicom_jax.inference.arrays import (
    PIXELS,
    in_batches,
    noise_at,
    padded_rows,
    prepared,
    to_patches,
    to_pictures,
)
from unicom_jax.inference.canvas import Canvas, canvas_of
from unicom_jax.inference.picture_encoder import PictureEncoder, encoder_in
from unicom_jax.inference.requests import as_pictures
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.models.paint_space import AUTOENCODER
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs import autoencoder, weights
from unicom_jax.runs.stages import UNIFIED, reconstructing
from unicom_jax.runs.trained import furthest

# What a codec needs: itself, the encoder whose features it codes, and a given autoencoder in whose
# latents it paints.
CODEC_TREES = ("codec", weights.EYE, AUTOENCODER)


@dataclasses.dataclass(eq=False)
class Reconstructor:
    """Pictures through their latents.

    Attributes:
      params: the trees of `models.codec`, of the space in which it paints, and of the encoder if
        there is one.
      batch_size: pictures computed at once; the configuration's unless set.
    """

    config: Mapping[str, Any]
    params: Mapping[str, Params]
    models: engine.Models
    batch_size: int = 0

    def __post_init__(self) -> None:
        self.batch_size = self.batch_size or self.config["evaluation"]["batch_size"]

    @classmethod
    def load(
        cls,
        workdir: str | Path,
        step: str = "",
        mesh: str | None = None,
        part: str = AUTOENCODER,
    ) -> Reconstructor:
        """The codec or autoencoder that a run trained, and its encoder if it has one; arguments and
        errors as for `Generator.load`.

        Args:
          part: which of the two, as from `trained_alone`.

        Raises:
          ValueError: `step` is given, which selects a step of the unified model.
        """
        if step:
            raise ValueError(
                f"--step={step} chooses a checkpoint of the unified model, and this run has "
                "trained none; leave it out"
            )
        workdir, devices = as_path(workdir), make_mesh(mesh or "fsdp=-1", jax.devices())
        config, _ = weights.describe(workdir)
        params: dict[str, Params] = {}
        trees = CODEC_TREES
        if part == AUTOENCODER:
            params["codec"] = autoencoder.load_trained(config, workdir, mesh=devices)
            trees = (weights.EYE,) if furthest(config, workdir, VISION.part) else ()
        for tree in trees:
            only = (tree,)
            params |= weights.restore(workdir, config, only=only, mesh=devices, for_use=True)
        return cls(config, params, _models(config, devices, part))

    @classmethod
    def untrained(
        cls,
        config: Mapping[str, Any],
        tokenizer: Tokenizer | None = None,
        seed: int = 0,
        mesh: str | None = None,
        part: str = AUTOENCODER,
    ) -> Reconstructor:
        """The same models with random weights; arguments as for `Generator.untrained` and `load`,
        but the tokenizer is not used."""
        del tokenizer
        devices = make_mesh(mesh or "fsdp=-1", jax.devices())
        params: dict[str, Params] = {}
        if part == AUTOENCODER:
            params["codec"] = autoencoder.fresh_autoencoder(config, seed, devices)
        else:
            params |= weights.untrained(config, seed, devices, only=CODEC_TREES)
        return cls(config, params, _models(config, devices, part))

    @cached_property
    def sequence(self) -> SequenceConfig:
        """How pictures are cut into patches."""
        return sequence_config(self.config)

    @property
    def encoder(self) -> PictureEncoder | None:
        """The encoder that measures pictures; None: the run has none."""
        return encoder_in(self.models, self.params, self.sequence, self.batch_size)

    def prepared(self, image: Picture) -> Picture:
        """The picture as the model sees it: resized under the image policy."""
        return prepared(image, self.sequence)

    def grid(self, image: Picture) -> tuple[int, int]:
        """Patch rows and columns of the prepared picture."""
        height, width = self.prepared(image).shape[:2]
        return height // self.sequence.patch, width // self.sequence.patch

    def reconstruct(
        self, images: Picture | Sequence[Picture], *, seed: int = 0, first: int = 0
    ) -> list[Picture]:
        """Encodes each picture to latents and decodes these alone, at the size of `prepared`.

        `seed`, `first`: for the noise from which a flow paints, as for `Generator.paint`.
        """
        pictures, steps = [self.prepared(image) for image in as_pictures(images)], self.steps(None)
        sizes = [self.grid(image) for image in pictures]
        canvases = [canvas_of(size, self.models.canvas, self.sequence) for size in sizes]
        results: dict[int, Picture] = {}
        for canvas in dict.fromkeys(canvases):
            places = [place for place, other in enumerate(canvases) if other == canvas]

            def run(batch: list[int], canvas=canvas) -> list[Picture]:
                latents = self.encoded([pictures[place] for place in batch], canvas)
                own = [first + place for place in batch]
                return self.pixels(latents, own, [sizes[p] for p in batch], canvas, steps, seed)

            drawn = in_batches(run, places, self.batch_size, self.models.row_devices)
            results |= zip(places, drawn, strict=True)
        return [results[place] for place in range(len(pictures))]

    def encoded(self, pictures: Sequence[Picture], canvas: Canvas) -> jax.Array:
        """Normalised latents (B, n, d) of pictures that fit on `canvas`."""
        seen = self.models.place(to_patches(pictures, self.sequence))
        latents = engine.encode(self.models, self.params, *seen)
        return latents[:, : canvas.patches // self.models.codec.pool**2]

    def pixels(
        self,
        latents: Any,
        places: Sequence[int],
        grids: Sequence[tuple[int, int]],
        canvas: Canvas,
        steps: int,
        seed: int,
    ) -> list[Picture]:
        """Pictures from latents, with noise by (seed, place) if the codec paints by a flow.

        `grids`: patch rows and columns of each.
        """
        sizes, noise = np.asarray(grids, np.int32), None
        if channels := self.models.codec.noise_channels:
            own = [
                noise_at(seed, [place], PIXELS, (rows * cols, channels))[0]
                for place, (rows, cols) in zip(places, grids, strict=True)
            ]
            noise = padded_rows(own, canvas.patches)
        painted = engine.paint(
            self.models.on(canvas.space), self.params, latents,
            *self.models.place((sizes, noise)), steps=steps,
        )  # fmt: skip
        return to_pictures(painted, sizes, self.sequence.patch)

    def steps(self, asked: int | None) -> int:
        """Flow steps that paint a picture: `asked`, else the configuration's; 1 if the codec
        decodes at once."""
        if not self.models.codec.noise_channels:
            return 1
        return asked or self.config["codec"]["sample_steps"]


def trained_alone(config: Mapping[str, Any], workdir: Path) -> str | None:
    """What a run without a unified model can reconstruct with: its "codec", else its "autoencoder";
    None: the run has a unified model, or neither of the two."""
    if furthest(config, workdir, UNIFIED.part):
        return None
    return next((part for part in reconstructing(config) if furthest(config, workdir, part)), None)


def _models(config: Mapping[str, Any], mesh: Mesh, part: str) -> engine.Models:
    """The models of a run; its own autoencoder is the codec of pictures if it is the `part`."""
    if part != AUTOENCODER:
        return engine.Models.of(config, mesh)
    space = space_of(config, build_autoencoder(config), autoencoder.canvas_of(config))
    codec = AutoencoderCodec(space)
    return dataclasses.replace(engine.Models.of(config, mesh), codec=codec, space=pixels(config))
