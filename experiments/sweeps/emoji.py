"""`channels` with drawings made by people: fewer channels against fewer tokens on OpenMoji.

    unicom data prepare openmoji --out=data/openmoji
    unicom sweep run experiments/sweeps/emoji.py

The model is that of experiments/openmoji.py, whose pictures have 16 tokens of 128 features at
64 px. `tokens` has a quarter of the tokens (2 x 2 of them in one), `attention` a quarter of the
channels, so both have 512 scalars. Only encoder and codec are trained: after ten minutes of
training such a model answers few questions and does not draw.

On two cores of an AMD EPYC that other jobs shared it took 16 minutes of CPU time. `attention` has
17.83 dB, `tokens` 17.89 dB (undecided) and `full` 22.12 dB: docs/science.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import openmoji
from experiments.sweeps.channels import KID, PSNR
from unicom_jax.sweeps.sweep import Contrast, Sweep

SSIM = "reconstruction/ssim"


def get_sweep() -> Sweep:
    return Sweep(
        claim="Of real drawings, too, fewer channels keep more than fewer tokens.",
        config=get_config(),
        variants={
            "full": {"codec.compressor": "identity"},
            "tokens": {"codec.compressor": "pool", "codec.pool": 2, "codec.latent_dim": 128},
            "attention": {"codec.latent_dim": 32},
        },
        seeds=(0, 1, 2),
        scores=(PSNR, SSIM, KID),
        contrasts=(
            Contrast(PSNR, better="attention", worse="tokens", paper="+2.32 dB"),
            Contrast(SSIM, better="attention", worse="tokens"),
            Contrast(KID, better="attention", worse="tokens", paper="FID -.16"),
            Contrast(PSNR, better="full", worse="attention", paper="+0.65 dB"),
        ),
        minutes=30,
    )


def get_config() -> ConfigDict:
    config = openmoji.get_config()
    config.stages = ("encoder", "codec")
    config.encoder.steps = 200
    config.codec.update({"steps": 250, "batch_size": 32})
    return config
