"""How the best size of a model grows with its cost, for text and for drawing apart.

    unicom sweep run experiments/sweeps/isoflop.py --jobs=2 --workdir=runs/isoflop
    python -m experiments.scaling --workdir=runs/isoflop

Five budgets of operations, five or six widths each, three seeds: every model is trained for as many
steps as its budget pays for, and its held-out losses of text and of drawing make two parabolas from
the same runs. Learning rate, decay and epsilon were tuned at width 48 and 400 steps
(`isoflop_rate`) and are rescaled for each width and length (`unified.tuned_at`, `tuned_steps`);
else badly tuned large models would tilt the parabolas. All runs have the same encoder and codec,
and all runs of a seed are evaluated on the same rows, flow times and noise. The variants `held_out`
have two and four times the largest budget and are left out of the fits, which predict them.

arXiv 2603.03276 reports N* growing as C^.47 for language and C^.37 for vision, from 6e18 operations
on, 2.5 million times the largest budget here. What was run and found is in docs/scaling.md.
"""

from __future__ import annotations

import functools

from ml_collections import ConfigDict

from experiments.sweeps import transfer
from experiments.sweeps.transfer import sizes
from unicom_jax.sweeps.predict import flops_per_step
from unicom_jax.sweeps.sweep import Sweep

WIDTHS = {
    1.5e11: (16, 32, 48, 64, 96),
    3e11: (16, 32, 48, 64, 96),
    6e11: (16, 32, 48, 64, 96, 128),
    1.2e12: (16, 32, 48, 64, 96, 128),
    2.4e12: (32, 48, 64, 96, 128),
}
HELD_OUT_WIDTH = 96
HELD_OUT = {f"held_out_{times}x": times * max(WIDTHS) for times in (2, 4)}  # operations
TUNED_WIDTH, TUNED_STEPS = 48, 400
TEXT, FLOW = "pretrain:eval/text", "pretrain:eval/flow"


def variant_name(budget: float, width: int) -> str:
    """A name that `experiments.scaling` reads."""
    return f"{budget:.1e}_w{width}"


def variant(budget: float, width: int) -> dict[str, object]:
    """A model of that width, trained for as many steps as the budget pays for."""
    return trained(width, round(budget / _cost(width)))


def trained(width: int, steps: int) -> dict[str, object]:
    """A model of that width with rescaled settings, evaluated once, at its end."""
    own = {f"unified.transformer.{name}": size for name, size in sizes(width).items()}
    return {
        **own,
        "unified.tuned_at": transfer.tuned_at(TUNED_WIDTH),
        "pretrain.tuned_steps": TUNED_STEPS,
        "pretrain.steps": steps,
        "pretrain.warmup_steps": steps // 10,
        "pretrain.eval_every": steps,
    }


@functools.cache
def _cost(width: int) -> float:
    """Operations of a training step."""
    config = get_config()
    config.unified.transformer.update(sizes(width))
    return flops_per_step(config, "pretrain")


def get_sweep() -> Sweep:
    grid = [(budget, width) for budget, widths in WIDTHS.items() for width in widths]
    variants = {variant_name(*point): variant(*point) for point in grid}
    for name, budget in HELD_OUT.items():
        variants[name] = variant(budget, HELD_OUT_WIDTH)
    return Sweep(
        claim="The best size of a model grows more slowly with its cost for drawing than for text.",
        config=get_config(),
        variants=variants,
        seeds=(0, 1, 2),
        scores=(TEXT, FLOW),
        contrasts=(),
        minutes=240,
        split="development",
    )


def get_config() -> ConfigDict:
    """Half of the documents are captions alone, half drawings of 48 px."""
    config = transfer.get_config()
    config.data.image_size = 48
    config.data.source.size = 65_536
    config.data.scenes.sizes = ((48, 48),)
    config.data.scenes.object_weights = (1.0, 1.0, 1.0)
    for stage in ("encoder", "codec"):
        config[stage].update({"steps": 200, "save_every": 0, "log_every": 50})
    config.pretrain.update(
        {
            "learning_rate": 0.011,
            "batch_size": 4,
            "window_rows": 4,
            "sequence_length": 192,
            "images_per_row": 4,
            "eval_batches": 64,
            "log_every": 100,
        }
    )
    config.pretrain.mixture.update({"text": 0.5, "text_to_image": 0.5, "visual_qa": 0.0})
    return config
