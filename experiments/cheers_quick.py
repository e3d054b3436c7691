"""The second family, Cheers, with all its stages on the embedded data set (arXiv 2603.12793).

    unicom train    --config=experiments/cheers_quick.py --workdir=runs/cheers_quick
    unicom evaluate --workdir=runs/cheers_quick
    unicom report   --workdir=runs/cheers_quick

The scenes are those of the quickstart: one or two large objects at 48 px. A token of the KL
autoencoder is a square of 8 pixels, and a slot of the transformer holds 2 x 2 of them, so a picture
takes nine slots, one for each place where an object can stand.

    encoder       SigLIP from scratch, patches of 8 pixels
    autoencoder   4 channels at a quarter of the resolution, 2 x 2 of them a token
    align         all but the copy of the decoder; there is no trained transformer to begin with
    pretrain      that, too

The paper's ablations, each a flag of `unicom train`:

    --config.unified.cheers.gate=False      no details of the patches in the flow head
    --config.unified.cheers.pixels=False    SigLIP reads latents, nothing is painted
    --config.unified.fold=1                 no compression: 36 slots a picture
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart

PATCH = 8
MIXTURE = {"text_to_image": 0.65, "image_to_text": 0.12, "questions": 0.23}

# The copy of the decoder, where there is one (SigLIP's pooling is never trained).
HELD_AT_FIRST = ("(decoder|vision/head)/.*",)


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("encoder", "autoencoder", "align", "pretrain")
    config.data.patch = PATCH
    config.encoder.vision.update({"width": 64, "depth": 3, "heads": 2, "mlp_dim": 192})
    config.encoder.steps = 200
    config.autoencoder.update(
        {
            "latent_channels": 4,
            "widths": (8, 16, 32),
            "resnets": 1,
            "norm_groups": 2,
            "kl_weight": 1e-4,
            "perceptual_weight": 0.5,
            "steps": 1200,
            "batch_size": 8,
            "learning_rate": 6e-3,
            "schedule": "cosine",
        }
    )
    _unified(config)
    config.sample.edit_start = 0.1
    config.evaluation.update({"prompts": 32, "pictures": 128, "questions": 64, "edits": 32})
    return config


def _unified(config: ConfigDict) -> None:
    config.unified.update({"pathway": "cheers", "fold": 2, "time_shift": 2.0})
    config.unified.update({"prediction": "data", "time_floor": 0.5})
    config.unified.transformer.qk_norm = True
    config.unified.cheers.semantics.update({"depth": 2, "heads": 4, "kv_heads": 2})
    config.unified.cheers.details.update({"depth": 2, "heads": 2, "kv_heads": 1})
    shared = {
        "batch_size": 4,
        "window_rows": 4,
        "sequence_length": 256,
        "images_per_row": 6,
        "draws_per_row": 12,
        "views_per_row": 15,
        "noisy_copies": 4,
        "optimizer": "muon",
        "learning_rate": 1e-2,
        "text_weight": 2.0,
    }
    for name in ("align", "pretrain"):
        config[name].update(shared)
        config[name].mixture.update({"conversation": 0.0, "edit": 0.0, **MIXTURE})
    config.align.update({"steps": 340, "schedule": "constant", "freeze": HELD_AT_FIRST})
    # Short: a step through the decoder copy's gradient takes twice as long.
    config.pretrain.update({"steps": 50, "learning_rate": 4e-3, "schedule": "linear"})
    config.pretrain.update({"warmup_steps": 10, "ema_decay": 0.9, "eval_every": 0})
