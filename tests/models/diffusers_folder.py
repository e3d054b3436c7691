"""A small KL autoencoder on disk as diffusers lays it out, written without torch."""

from __future__ import annotations

from pathlib import Path

from tests.families.documents import lively
from unicom_jax.core.module import Params
from unicom_jax.interop.folders import write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.models.autoencoder import Autoencoder, AutoencoderKL, AutoencoderKLFlux2

SMALL = AutoencoderKL(4, (8, 8), resnets=1, groups=4, scale=0.5, shift=0.25)  # shrinks by 2
SMALL2 = AutoencoderKLFlux2(4, (8, 8), resnets=1, groups=4, quant_conv=True)


def write_folder(folder: Path, module: Autoencoder = SMALL, **changes: object) -> Params:
    """Writes `module` with random weights, which are returned; `changes` are of config.json."""
    params = lively(module, scale=0.2)
    write_model(folder, LAYOUTS["autoencoder"], module, params, about=changes)
    return params
