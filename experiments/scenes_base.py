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

MIXTURE = {
    "text": 0.01,
    "text_to_image": 0.47,
    "image_to_text": 0.03,
    "visual_qa": 0.02,
    "conversation": 0.22,
    "edit": 0.2,
    "several_images": 0.01,
    "think_then_draw": 0.02,
    "interleaved": 0.02,
}
# At the end more questions: they learn slowest.
SFT_MIXTURE = {
    "text": 0.01,
    "text_to_image": 0.31,
    "image_to_text": 0.03,
    "visual_qa": 0.04,
    "conversation": 0.42,
    "edit": 0.14,
    "several_images": 0.01,
    "think_then_draw": 0.02,
    "interleaved": 0.02,
}


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
    config.stages = ("encoder", "codec", "pretrain", "continue", "sft")
    config.encoder.steps = 600
    config.encoder.text.max_length = 56
    config.codec.update({"steps": 600, "latent_noise": 0.6})
    config.unified.update({"prediction": "data", "time_floor": 0.5, "time_shift": 2.0})
    config.unified.transformer.update({"depth": 4, "qk_norm": True})
    for name in ("pretrain", "continue", "sft"):
        config[name].update(config.pretrain)
        config[name].update({"noisy_copies": 4, "images_per_row": 22, "mixture": MIXTURE})
    config.pretrain.update({"steps": 2500, "schedule": "constant", "text_weight": 2.0})
    config["continue"].update({"steps": 3600, "schedule": "linear", "text_weight": 2.0})
    config.sft.update({"steps": 2500, "schedule": "linear", "text_weight": 4.0})
    config.sft.update({"learning_rate": 6e-3, "mixture": SFT_MIXTURE})
    config.evaluation.update({"prompts": 64, "pictures": 256, "edits": 128})
    return config
