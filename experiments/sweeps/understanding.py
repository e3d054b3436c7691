"""Does a model that reads raw features answer more than one that reads compressed latents?

    unicom sweep run experiments/sweeps/understanding.py --workdir=runs/sweeps/small_world

UniCom reports GQA, ChartQA and OCRBench of 65.3, 69.0 and 55.4 with raw features, and 64.0, 62.1
and 36.0 with the latents of an attention compressor. "text" asks which letter is in the picture.
The variants of a seed share the encoder and the codec, and differ in what the transformer reads.
With both, joined by channel or one after the other, the paper has 64.2 and 65.0 on GQA; these
variants (`unified.understanding=channel_concat`, `sequence_concat`) are not part of the sweep.
"""

from __future__ import annotations

from experiments.sweeps import channels
from unicom_jax.sweeps.sweep import Contrast, Sweep

ANSWERED, READ = "understanding/qa", "understanding/qa/text"


def get_sweep() -> Sweep:
    return Sweep(
        claim="A model that reads raw features answers more than one that reads their latents.",
        config=channels.get_config(),
        variants={
            "attention": {"codec.latent_dim": 16},
            "features": {"codec.latent_dim": 16, "unified.understanding": "features"},
        },
        seeds=(0, 1, 2),
        scores=(ANSWERED, READ, "pretrain:eval/text"),
        contrasts=(
            Contrast(READ, better="features", worse="attention", paper="+19.4 (OCRBench)"),
            Contrast(ANSWERED, better="features", worse="attention", paper="+1.3 (GQA)"),
        ),
        minutes=60,
    )
