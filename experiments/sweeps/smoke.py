"""The smallest sweep: three transformers on one encoder and codec, two seeds, to see that it works.

    unicom sweep run experiments/sweeps/smoke.py

Each seed trains its encoder and its codec once for all three variants. Nothing is learned in so few
steps; the claim is there to be undecided.
"""

from __future__ import annotations

from experiments import base
from unicom_jax.sweeps.sweep import Contrast, Sweep


def get_sweep() -> Sweep:
    return Sweep(
        claim="A wider transformer answers more questions after eight steps.",
        config=get_config(),
        variants={
            "narrow": {},
            "wide": {"unified.transformer.width": 64, "unified.transformer.mlp_dim": 128},
            "slow": {"pretrain.learning_rate": 1e-4},
        },
        seeds=(0, 1),
        scores=("understanding/qa", "reconstruction/psnr", "pretrain:eval/loss"),
        contrasts=(
            Contrast("understanding/qa", better="wide", worse="narrow"),
            Contrast("pretrain:eval/loss", better="wide", worse="narrow"),
            Contrast("pretrain:eval/loss", better="narrow", worse="slow"),
        ),
        minutes=15,
        split="development",
    )


def get_config():
    """32 px scenes of one object, and models of a few thousand weights."""
    config = base.get_config()
    config.data.image_size = 32
    config.data.source.size = 256
    config.data.vocab_size = 400
    config.data.scenes.sizes = ((32, 32),)
    config.data.scenes.object_weights = (1.0,)
    tower = {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 32}
    config.encoder.vision.update(tower)
    config.encoder.text.update({**tower, "max_length": 16})
    config.codec.update({"latent_dim": 8, "sample_steps": 2, "statistics_batches": 2})
    config.codec.decoder.update(tower)
    config.unified.transformer.update(
        {"width": 32, "depth": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_dim": 64}
    )
    for stage in ("encoder", "codec", "pretrain"):
        config[stage].update(
            {"steps": 8, "batch_size": 4, "log_every": 2, "warmup_steps": 1, "save_every": 4}
        )
    config.pretrain.update(
        {"sequence_length": 96, "images_per_row": 6, "window_rows": 4, "window_documents": 8}
    )
    config.pretrain.update({"eval_every": 4, "eval_batches": 1})
    config.pretrain.mixture.update({"text_to_image": 0.5, "visual_qa": 0.5})
    config.evaluation.update(
        {"pictures": 8, "prompts": 2, "questions": 4, "edits": 0, "shown": 2, "batch_size": 8}
    )
    config.sample.update({"steps": 2, "max_tokens": 4})
    return config
