"""The second family, Cheers, with all its stages on the embedded data set (arXiv 2603.12793).

    unicom train    --config=experiments/cheers_quick.py --workdir=runs/cheers_quick
    unicom evaluate --workdir=runs/cheers_quick
    unicom report   --workdir=runs/cheers_quick

The scenes are those of the quickstart: one or two large objects at 48 px. A token of the KL
autoencoder is a square of 8 pixels, and a slot of the transformer holds 2 x 2 of them, so a picture
takes nine slots, one for each place where an object can stand.

    encoder       SigLIP from scratch, patches of 8 pixels
    autoencoder   4 channels at a quarter of the resolution, 2 x 2 of them a token
    align         projector, flow head and gate over a frozen rest, as the paper's first stage
    pretrain      everything but the autoencoder

All stages took 12 min 30 s of CPU time on two cores of an AMD EPYC that other jobs shared, and the
scores 3 minutes more: PSNR 19.7 dB (untrained 7.1), and everything that the transformer does at
chance: Scenes-GenEval 1% (chance 8%), questions 39% (44%), captions 8% (8%). So this shows that all
stages run, not that they learn: 240 steps of pretraining are a tenth of the quickstart's.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart
from unicom_jax.families.cheers import FROZEN_AT_FIRST

MIXTURE = {"text_to_image": 0.7, "image_to_text": 0.1, "conversation": 0.1, "edit": 0.1}


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("encoder", "autoencoder", "align", "pretrain")
    config.data.patch = 8
    config.encoder.vision.update({"width": 96, "depth": 3, "heads": 3, "mlp_dim": 256})
    config.encoder.update({"pixel_weight": 0.0, "steps": 150})
    config.autoencoder.update(
        {
            "latent_channels": 4,
            "widths": (8, 16, 32),
            "resnets": 1,
            "norm_groups": 8,
            "steps": 250,
            "batch_size": 32,
            "learning_rate": 2e-3,
        }
    )
    config.unified.update({"pathway": "cheers", "fold": 2})
    config.unified.cheers.semantics.update({"depth": 2, "heads": 4, "kv_heads": 2})
    config.unified.cheers.details.update({"depth": 1, "heads": 3, "kv_heads": 1})
    shared = {"batch_size": 4, "window_rows": 4, "images_per_row": 6, "draws_per_row": 8}
    shared |= {"sequence_length": 256, "noisy_copies": 1, "optimizer": "muon", "mixture": MIXTURE}
    for name in ("align", "pretrain"):
        config[name].update({**shared, "learning_rate": 5e-3, "schedule": "cosine"})
    config.align.update({"steps": 60, "freeze": FROZEN_AT_FIRST})
    config.pretrain.update({"steps": 240, "ema_decay": 0.99, "eval_every": 80})
    config.sample.edit_start = 0.1
    config.evaluation.update({"prompts": 16, "pictures": 64, "questions": 32, "edits": 32})
    return config
