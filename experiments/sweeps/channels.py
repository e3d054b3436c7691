"""Cutting the channels of latents costs less than cutting their number.

    unicom sweep run experiments/sweeps/channels.py --workdir=runs/sweeps/small_world

UniCom reconstructs ImageNet from 1024 tokens of 1152 features with 23.26 dB, from 256 such tokens
with 20.29 dB, and from 1024 latents of 64 channels, made by an attention compressor, with 22.61 dB.
Here a picture has 16 tokens of 64 features. `tokens` has a quarter of the tokens (2 x 2 of them in
one), `attention` a quarter of the channels, so both have 256 scalars; `few` has a sixteenth of the
channels, 64 scalars, a quarter of those of `tokens`. A model is trained to answer questions from
each kind of latents.

The base of this sweep, `get_config`, is a small world for the sweeps about claims: scenes of one
large object at 32 px, three shapes and four letters in four colours, and models that are trained
for a minute each. The model does not draw: in a trial that gave three in five documents to drawing,
one of 32 drawings of single objects was correct after 300 steps, which take most of the CPU time
that a run has here.

`compressor` and `understanding` have the same base. With one workdir for all three, they share
their stages, and the runs that are the same in two of them.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base
from unicom_jax.sweeps.sweep import Contrast, Sweep

PSNR, KID, AGREEMENT = (f"reconstruction/{name}" for name in ("psnr", "kid", "agreement"))
ANSWERED = "understanding/qa"


def get_sweep() -> Sweep:
    return Sweep(
        claim="At an equal number of scalars, fewer channels keep more than fewer tokens.",
        config=get_config(),
        variants={
            "full": {"codec.compressor": "identity"},
            "tokens": {"codec.compressor": "pool", "codec.pool": 2},
            "attention": {"codec.latent_dim": 16},
            "few": {"codec.latent_dim": 4},
        },
        seeds=(0, 1, 2),
        scores=(PSNR, KID, AGREEMENT, ANSWERED, "pretrain:eval/text"),
        contrasts=(
            Contrast(PSNR, better="attention", worse="tokens", paper="+2.32 dB"),
            Contrast(KID, better="attention", worse="tokens", paper="FID -.16"),
            Contrast(AGREEMENT, better="attention", worse="tokens"),
            Contrast(ANSWERED, better="attention", worse="tokens"),
            Contrast(PSNR, better="full", worse="attention", paper="+0.65 dB"),
            Contrast(PSNR, better="few", worse="tokens"),
            Contrast(AGREEMENT, better="few", worse="tokens"),
            Contrast(ANSWERED, better="few", worse="tokens"),
        ),
        minutes=40,
    )


def get_config() -> ConfigDict:
    """The small world."""
    config = base.get_config()
    config.data.update({"image_size": 32, "patch": 8})
    config.data.scenes.update(
        {
            "sizes": ((32, 32),),
            "object_weights": (1.0,),
            "shapes": ("circle", "triangle", "cross", "letter"),
            "letters": ("A", "L", "T", "U"),
            "colours": ("red", "yellow", "green", "blue"),
            "object_sizes": ("large",),
            "backgrounds": ("white", "gray"),
            "jitter": 0.0,
        }
    )
    frozen = {"batch_size": 64, "optimizer": "muon", "learning_rate": 1e-2, "schedule": "cosine"}
    config.encoder.update({**frozen, "steps": 150, "clip_norm": 10.0, "warmup_steps": 20})
    config.encoder.update({"captions": "last", "pixel_weight": 10.0})
    tower = {"width": 64, "depth": 2, "heads": 2, "mlp_dim": 256}
    config.encoder.vision.update(tower)
    config.encoder.text.update({**tower, "max_length": 32})
    config.codec.update({**frozen, "steps": 200, "batch_size": 32, "warmup_steps": 20})
    config.codec.update({"time_shift": 2.0, "latent_noise": 0.5, "sample_steps": 4})
    config.codec.decoder.update(
        {"width": 96, "depth": 3, "heads": 4, "mlp_dim": 256, "time_floor": 0.5}
    )
    config.unified.understanding = "latents"
    config.unified.transformer.update({"width": 96, "depth": 3, "heads": 4, "mlp_dim": 288})
    config.unified.transformer.update({"embedding_std": 0.3, "qk_norm": True})
    config.pretrain.update(
        {
            "steps": 250,
            "warmup_steps": 20,
            "batch_size": 4,
            "window_rows": 4,
            # Rows end with the third picture, not with the last slot: variants whose pictures have
            # fewer tokens see about as many pictures.
            "sequence_length": 320,
            "images_per_row": 3,
            "optimizer": "muon",
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "ema_decay": 0.98,
            "log_every": 25,
            "eval_every": 50,
        }
    )
    config.pretrain.mixture.conversation = 1.0
    config.evaluation.update({"prompts": 0, "pictures": 128, "questions": 64, "edits": 0})
    config.evaluation.update({"shown": 4, "batch_size": 64})
    config.sample.max_tokens = 12
    return config
