"""The learning rate of `isoflop` at the width and number of steps from which it is rescaled.

unicom sweep run experiments/sweeps/isoflop_rate.py --workdir=runs/isoflop

Held-out losses with seed 0 (8 minutes of CPU time in all, on two cores of an AMD EPYC that other
jobs shared). For 3200 steps, the rates are rescaled: they are the square root of 8 times smaller
than those named.

    learning rate              .004   .008   .016   .032
    text, 400 steps            .929   .903   .900   .906
    drawing, 400 steps         .437   .411   .427   .445
    text, 3200 steps           .846   .821   .821
    drawing, 3200 steps        .353   .334   .331

At both lengths .008 and .016 are equally good, and `isoflop` has .011.
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
        claim="A learning rate tuned for 400 steps is the best one for eight times as many.",
        config=isoflop.get_config(),
        variants=variants,
        seeds=(0,),
        scores=(isoflop.TEXT, isoflop.FLOW),
        contrasts=(),
        minutes=15,
        split="development",
    )
