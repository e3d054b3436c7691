"""All stages on the embedded data set in a quarter of an hour on two CPU cores.

make quickstart
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
            "backgrounds": ("white", "gray", "black"),
        }
    )
    config.encoder.update(
        {
            "steps": 600,
            "batch_size": 48,
            "learning_rate": 7e-4,
            "clip_norm": 10.0,
            "captions": "last",
        }
    )
    config.encoder.text.max_length = 32
    config.codec.update(
        {"steps": 400, "batch_size": 64, "learning_rate": 1e-3, "schedule": "cosine"}
    )
    config.codec.decoder.mlp_dim = 512
    config.pretrain.update(
        {
            "steps": 700,
            "batch_size": 8,
            "images_per_row": 11,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "ema_decay": 0.99,
        }
    )
    config.pretrain.mixture.update(
        {"text_to_image": 0.45, "image_to_text": 0.1, "visual_qa": 0.25, "edit": 0.2}
    )
    return config
