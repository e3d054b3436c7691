"""What should a model read to understand a picture: raw features, latents, or both?

    unicom sweep run experiments/sweeps/understanding.py --workdir=runs/sweeps/small_world

UniCom reports GQA, ChartQA and OCRBench of 65.3, 69.0 and 55.4 with raw features, 64.0, 62.1 and
36.0 with compressed latents, 64.2, 60.9 and 48.1 with both joined by channel, and 65.0, 69.2 and
55.5 with both one after the other. "text" asks which letter is in the picture. The variants of a
seed share the encoder and the codec, and differ in `unified.understanding` alone.
"""

from __future__ import annotations

from experiments.sweeps import channels
from unicom_jax.sweeps.sweep import Contrast, Sweep

ANSWERED, READ = "understanding/qa", "understanding/qa/text"


def get_sweep() -> Sweep:
    return Sweep(
        claim="A model that reads raw features, too, answers more than one that reads latents.",
        config=channels.get_config(),
        variants={
            "attention": {"codec.latent_dim": 16},
            **{
                name: {"codec.latent_dim": 16, "unified.understanding": name}
                for name in ("features", "sequence_concat", "channel_concat")
            },
        },
        seeds=(0, 1, 2),
        scores=(ANSWERED, READ, "pretrain:eval/text"),
        contrasts=(
            Contrast(READ, better="features", worse="attention", paper="+19.4 (OCRBench)"),
            Contrast(READ, better="sequence_concat", worse="attention", paper="+19.5 (OCRBench)"),
            Contrast(READ, better="channel_concat", worse="attention", paper="+12.1 (OCRBench)"),
            Contrast(ANSWERED, better="features", worse="attention", paper="+1.3 (GQA)"),
        ),
        minutes=60,
    )
