"""All stages on the embedded data set in about a quarter of an hour on two CPU cores.

    make quickstart

Scenes of one or two large objects, 64 px, sixteen tokens a picture. Measured on a fresh clone, on
two cores (AMD EPYC) that other jobs partly shared: 15 min 38 s with the installation; encoder
160 s, codec 136 s, pretrain 442 s; PSNR 26.0 dB, questions 55% (chance 37%), captions 26%
(chance 9%), single objects 3%, edits 0%. Drawing needs more samples than this budget gives: the
flow loss still falls when it ends.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.scenes.update(
        {
            "object_weights": (6.0, 4.0),
            "shapes": ("circle", "square", "triangle", "letter"),
            "letters": ("A", "H", "L", "T"),
            "colours": ("red", "yellow", "green", "blue"),
            "object_sizes": ("large",),
            "backgrounds": ("white", "gray", "black"),
        }
    )
    config.encoder.update(
        {
            "steps": 700,
            "batch_size": 48,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "clip_norm": 10.0,
            "captions": "last",
            "pixel_weight": 100.0,
        }
    )
    config.encoder.text.max_length = 32
    config.codec.update(
        {
            "steps": 350,
            "batch_size": 64,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "time_shift": 2.0,
            "sample_steps": 4,
        }
    )
    config.codec.decoder.update({"mlp_dim": 512, "time_floor": 0.5})
    config.unified.transformer.update({"width": 128, "heads": 4, "mlp_dim": 384})
    config.pretrain.update(
        {
            "steps": 2000,
            "batch_size": 4,
            "window_rows": 4,
            "images_per_row": 11,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "ema_decay": 0.99,
        }
    )
    config.pretrain.mixture.update(
        {
            "text_to_image": 0.45,
            "image_to_text": 0.1,
            "visual_qa": 0.1,
            "conversation": 0.15,
            "edit": 0.2,
        }
    )
    return config
