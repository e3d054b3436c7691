"""Is it easier to draw latents of few channels than few tokens?

    unicom sweep run experiments/sweeps/drawing.py --workdir=runs/sweeps/drawing_world

`channels` compares what latents keep of a picture. Here models learn to draw them. The world is
that of `convergence`, whose pictures have 3 x 3 tokens of 128 features, one for each place of an
object, and with the same workdir two of the variants are its runs: `full` draws raw features, and
`d16` nine latents of 16 channels. `tokens` joins all nine tokens to one latent of 144 channels, so
that it has as many scalars as `d16`. It needs fewer slots: its rows are shorter, so that they hold
about as many pictures.

On two cores of an AMD EPYC that other jobs shared it took 4 minutes of CPU time besides what it
shares with `convergence`. `tokens` draws 96.9% of the prompts that name a shape correctly and `d16`
55.9%, the opposite of the claim's sign (p = .03); with a colour 82.6 and 58.7% (p = .06):
docs/science.md.
"""

from __future__ import annotations

from experiments.sweeps import convergence
from experiments.sweeps.channels import AGREEMENT
from experiments.sweeps.convergence import DRAWN, SHAPES
from unicom_jax.sweeps.sweep import Contrast, Sweep

TOKENS = {
    "codec.compressor": "pool",
    "codec.pool": 3,
    "codec.latent_dim": 9 * 16,
    "pretrain.sequence_length": 72,
}


def get_sweep() -> Sweep:
    sweep = convergence.get_sweep()
    variants = {name: sweep.variants[name] for name in ("full", "d16")}
    return Sweep(
        claim="At an equal number of scalars, fewer channels are drawn better than fewer tokens.",
        config=sweep.config,
        variants={**variants, "tokens": TOKENS},
        seeds=sweep.seeds,
        scores=sweep.scores,
        contrasts=(
            Contrast(DRAWN, better="d16", worse="tokens"),
            Contrast(SHAPES, better="d16", worse="tokens"),
            Contrast(AGREEMENT, better="d16", worse="tokens"),
        ),
        minutes=30,
    )
