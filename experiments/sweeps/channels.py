"""Cutting the channels of latents costs less than cutting their number.

    unicom sweep run experiments/sweeps/channels.py --workdir=runs/sweeps/small_world

UniCom reconstructs ImageNet from 1024 tokens of 1152 features with 23.26 dB, from 256 such tokens
with 20.29 dB, and from 1024 latents of 64 channels, made by an attention compressor, with 22.61 dB.
Here a picture has 16 tokens of 64 features. `tokens` and `attention` have 256 scalars each, and a
model is trained to answer questions from each kind of latents.
"""

from __future__ import annotations

from experiments.sweeps import small_world
from unicom_jax.sweeps.sweep import Contrast, Sweep

PSNR, KID, AGREEMENT = (f"reconstruction/{name}" for name in ("psnr", "kid", "agreement"))
ANSWERED = "understanding/qa"


def get_sweep() -> Sweep:
    return Sweep(
        claim="At an equal number of scalars, fewer channels keep more than fewer tokens.",
        config=small_world.get_config(),
        variants={
            "full": {"codec.compressor": "identity"},
            "tokens": {"codec.compressor": "pool", "codec.pool": 2},
            "attention": {"codec.latent_dim": 16},
        },
        seeds=(0, 1, 2),
        scores=(PSNR, KID, AGREEMENT, ANSWERED),
        contrasts=(
            Contrast(
                PSNR, better="attention", worse="tokens", paper="+2.3 dB at 1/4.5 the scalars"
            ),
            Contrast(KID, better="attention", worse="tokens", paper="FID -.16"),
            Contrast(AGREEMENT, better="attention", worse="tokens"),
            Contrast(ANSWERED, better="attention", worse="tokens"),
            Contrast(PSNR, better="full", worse="attention", paper="+0.65 dB"),
        ),
        minutes=40,
    )
