"""Does a model that reads raw features answer more than one that reads compressed latents?

    unicom sweep run experiments/sweeps/understanding.py --workdir=runs/sweeps/small_world

UniCom reports GQA, ChartQA and OCRBench of 65.3, 69.0 and 55.4 with raw features, 64.0, 62.1 and
36.0 with the latents of an attention compressor, 64.2, 60.9 and 48.1 with both joined by channel,
and 65.0, 69.2 and 55.5 with one after the other. "text" asks which letter is in the picture. The
variants of a seed share the encoder and the codec, and differ in what the transformer reads.
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
            "channel": {"codec.latent_dim": 16, "unified.understanding": "channel_concat"},
            # A picture takes twice as many slots, and a row has three.
            "sequence": {
                "codec.latent_dim": 16,
                "unified.understanding": "sequence_concat",
                "pretrain.sequence_length": 368,
            },
        },
        seeds=(0, 1, 2),
        scores=(ANSWERED, READ, "pretrain:eval/text"),
        contrasts=tuple(
            Contrast(score, better=reads, worse="attention", paper=paper)
            for reads, text, all_questions in (
                ("features", "+19.4", "+1.3"),
                ("channel", "+12.1", "+0.2"),
                ("sequence", "+19.5", "+1.0"),
            )
            for score, paper in ((READ, f"{text} (OCRBench)"), (ANSWERED, f"{all_questions} (GQA)"))
        ),
        minutes=60,
    )
