"""The learning rate of `isoflop` at the width and number of steps from which it is rescaled.

unicom sweep run experiments/sweeps/isoflop_rate.py --workdir=runs/isoflop

Held-out losses with seed 0 (6 minutes of CPU time in all, on two cores of an AMD EPYC that other
jobs shared); after 1600 steps the rates are half of those named:

    learning rate              .004   .008   .016   .032
    text, 400 steps            .947   .918   .914   .922
    drawing, 400 steps         .506   .499   .491   .493
    text, 1600 steps           .887   .872   .869
    drawing, 1600 steps        .397   .393   .381
"""

from __future__ import annotations

from experiments.sweeps import isoflop
from unicom_jax.sweeps.sweep import Sweep

RATES = (0.004, 0.008, 0.016, 0.032)
LONGER = 8  # times as many steps, with rates rescaled for them


def variant(rate: float, steps: int) -> dict[str, object]:
    own = isoflop.trained(isoflop.TUNED_WIDTH, steps)
    return {**own, "pretrain.learning_rate": rate}


def get_sweep() -> Sweep:
    steps = isoflop.TUNED_STEPS
    variants = {f"short_{rate}": variant(rate, steps) for rate in RATES}
    variants |= {f"long_{rate}": variant(rate, LONGER * steps) for rate in RATES[:3]}
    return Sweep(
        claim="A learning rate tuned for 400 steps is the best one for four times as many.",
        config=isoflop.get_config(),
        variants=variants,
        seeds=(0,),
        scores=(isoflop.TEXT, isoflop.FLOW),
        contrasts=(),
        minutes=15,
        split="development",
    )
