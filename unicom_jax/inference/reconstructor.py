"""`Reconstructor`: an autoencoder that a run trained, without a model that draws in its latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.module import Params
from unicom_jax.core.paths import as_path
from unicom_jax.families.build import VISION, build_autoencoder, space_of
from unicom_jax.families.family import pixels
from unicom_jax.inference.generator import Generator
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs import weights
from unicom_jax.runs.autoencoder import canvas_of, fresh_autoencoder, load_trained
from unicom_jax.runs.trained import furthest


class Reconstructor(Generator):
    """A `Generator` with the trees `codec`, of the autoencoder, and `vision` where there is one.

    It has `reconstruct`, `prepared` and, with an encoder, `features`; all else needs weights that
    it lacks.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        params: Mapping[str, Params],
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(config, tokenizer, params, mesh)
        space = space_of(config, build_autoencoder(config), canvas_of(config))
        self.models = dataclasses.replace(
            self.models, codec=AutoencoderCodec(space), space=pixels(config)
        )

    @classmethod
    def load(cls, workdir: str | Path, step: str = "", mesh: str | None = None) -> Reconstructor:
        """As `Generator.load`.

        Raises:
          ValueError: a `step`, which chooses one of the unified model.
        """
        if step:
            raise ValueError(
                f"--step={step} chooses a checkpoint of the unified model, and this run has "
                "trained none; leave it out"
            )
        workdir, devices = as_path(workdir), make_mesh(mesh or "fsdp=-1", jax.devices())
        config, tokenizer = weights.describe(workdir)
        params: dict[str, Params] = {}
        params["codec"] = load_trained(config, workdir, mesh=devices)
        if furthest(config, workdir, VISION.part):
            only = (weights.EYE,)
            params |= weights.restore(workdir, config, only=only, mesh=devices, for_use=True)
        return cls(config, tokenizer, params, devices)

    @classmethod
    def untrained(
        cls,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        seed: int = 0,
        mesh: str | None = None,
    ) -> Reconstructor:
        """The same autoencoder with random weights."""
        devices = make_mesh(mesh or "fsdp=-1", jax.devices())
        params: dict[str, Params] = {}
        params["codec"] = fresh_autoencoder(config, seed, devices)
        return cls(config, tokenizer, params, devices)
