"""Scenes with up to four objects and every task, in about an hour on two CPU cores.

    unicom train    --config=experiments/scenes_base.py --workdir=runs/scenes_base
    unicom evaluate --workdir=runs/scenes_base
    unicom report   --workdir=runs/scenes_base

Beyond the quickstart: three and four objects, and all nine tasks, thinking before drawing and
conversations with drawings among them. Letters, small objects, free places and the shapes that are
hardest to tell apart stay for `scenes_large`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.data.source.size = 40_000
    config.data.scenes.object_weights = (3.0, 3.0, 2.0, 2.0)
    config.encoder.steps = 400
    config.encoder.text.max_length = 56
    config.codec.steps = 500
    config.unified.transformer.depth = 6
    config.pretrain.update({"steps": 13_000, "noisy_copies": 4, "images_per_row": 28})
    config.pretrain.mixture.update(
        {
            "text": 0.01,
            "text_to_image": 0.53,
            "image_to_text": 0.04,
            "visual_qa": 0.03,
            "conversation": 0.16,
            "edit": 0.16,
            "several_images": 0.02,
            "think_then_draw": 0.03,
            "interleaved": 0.02,
        }
    )
    config.evaluation.update({"prompts": 64, "pictures": 256, "edits": 128})
    return config
