"""Does a model that can read pictures learn to draw them sooner?

    unicom sweep run experiments/sweeps/align.py --jobs=2

UniCom finds that starting from a model that understands pictures beats starting from a language
model alone. `reader` learns to read for 400 steps, and then to draw and to read for 800; `together`
does the latter for 1200. A step of both stages takes the same operations (7.4 and 7.5 billion).

This sweep has not been run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart
from unicom_jax.sweeps.sweep import Contrast, Sweep

OVERALL, ANSWERED = "generation/overall", "understanding/qa"
# What the stage `align` takes over from `pretrain`.
ROWS = ("batch_size", "window_rows", "images_per_row", "optimizer", "learning_rate", "schedule")


def get_sweep() -> Sweep:
    return Sweep(
        claim="At equal operations, a model that read first draws better.",
        config=get_config(),
        variants={"reader": read_first, "together": {}},
        seeds=(0, 1, 2),
        scores=(OVERALL, "generation/single", ANSWERED),
        contrasts=(Contrast(OVERALL, better="reader", worse="together"),),
        minutes=120,
    )


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.pretrain.steps = 1200
    shares = {"text_to_image": 0.6, "conversation": 0.4}
    for task in config.pretrain.mixture:
        config.pretrain.mixture[task] = shares.get(task, 0.0)
    return config


def read_first(config: ConfigDict) -> None:
    config.stages = ("encoder", "codec", "align", "pretrain")
    config.align.update({name: config.pretrain[name] for name in ROWS})
    config.align.update({"steps": 400, "flow_weight": 0.0})
    config.align.mixture.conversation = 1.0
    config.pretrain.steps -= config.align.steps
