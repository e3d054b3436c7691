"""Scenes with up to four objects and every task, in about an hour on two CPU cores.

    unicom train    --config=experiments/scenes_base.py --workdir=runs/scenes_base
    unicom evaluate --workdir=runs/scenes_base
    unicom report   --workdir=runs/scenes_base

Beyond the quickstart: three and four objects, three letters, six colours, three grounds, and all
nine tasks, thinking before drawing and conversations with drawings among them. Small objects, free
places and the shapes that are hardest to tell apart stay for `scenes_large`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.data.source.size = 40_000
    config.data.scenes.update(
        {
            "object_weights": (3.0, 3.0, 2.0, 2.0),
            "shapes": ("circle", "triangle", "ring", "cross", "letter"),
            "letters": ("L", "T", "U"),
            "colours": ("red", "yellow", "green", "cyan", "blue", "purple"),
            "backgrounds": ("white", "gray", "black"),
        }
    )
    config.stages = ("encoder", "codec", "pretrain", "continue")
    config.encoder.steps = 600
    config.encoder.text.max_length = 56
    config.codec.steps = 600
    config.unified.update({"prediction": "data", "time_floor": 0.5, "time_shift": 2.0})
    config.unified.transformer.update({"depth": 6, "qk_norm": True})
    mixture = {
        "text": 0.01,
        "text_to_image": 0.5,
        "image_to_text": 0.03,
        "visual_qa": 0.02,
        "conversation": 0.19,
        "edit": 0.2,
        "several_images": 0.01,
        "think_then_draw": 0.02,
        "interleaved": 0.02,
    }
    for name in ("pretrain", "continue"):
        config[name].update(config.pretrain)
        config[name].update({"noisy_copies": 4, "images_per_row": 22, "mixture": mixture})
    config.pretrain.update({"steps": 10_000, "schedule": "constant", "ema_decay": 0.998})
    config["continue"].update({"steps": 3000, "schedule": "linear"})
    config.evaluation.update({"prompts": 64, "pictures": 256, "edits": 128})
    return config
