"""Is it easier to draw latents of few channels than few tokens?

    unicom sweep run experiments/sweeps/drawing.py --workdir=runs/sweeps/drawing_world

`channels` compares what latents keep of a picture. Here models learn to draw them. The world is
that of `convergence`, with pictures of 16 tokens instead of nine, so that 2 x 2 of them can be
joined: `tokens` has four latents of 128 channels, `attention` 16 latents of 32, 512 scalars each.
`full` draws the 16 raw features of 128 channels. A row ends with the third picture, which has four
noisy copies, so all variants see as many pictures in as many steps.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.sweeps import convergence
from experiments.sweeps.channels import AGREEMENT, PSNR
from experiments.sweeps.convergence import DRAWN, SHAPES
from unicom_jax.sweeps.sweep import Contrast, Sweep


def get_sweep() -> Sweep:
    return Sweep(
        claim="At an equal number of scalars, fewer channels are drawn better than fewer tokens.",
        config=get_config(),
        variants={
            "full": {"codec.compressor": "identity"},
            "tokens": {
                "codec.compressor": "pool",
                "codec.pool": 2,
                "codec.latent_dim": 128,
                "pretrain.sequence_length": 128,
            },
            "attention": {"codec.latent_dim": 32},
        },
        seeds=(0, 1, 2),
        scores=(DRAWN, SHAPES, PSNR, AGREEMENT),
        contrasts=(
            Contrast(DRAWN, better="attention", worse="tokens"),
            Contrast(SHAPES, better="attention", worse="tokens"),
            Contrast(AGREEMENT, better="attention", worse="tokens"),
            Contrast(DRAWN, better="full", worse="attention"),
        ),
        minutes=40,
    )


def get_config() -> ConfigDict:
    config = convergence.get_config()
    config.data.patch = 12
    config.pretrain.draws_per_row = 3 * config.pretrain.noisy_copies
    return config
