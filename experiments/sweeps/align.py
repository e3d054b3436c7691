"""Does a model that can read pictures learn to draw them sooner?

    unicom sweep run experiments/sweeps/align.py --workdir=runs/sweeps/drawing_world

UniCom finds that starting from a model that understands pictures beats starting from a language
model alone. `reader` learns to read for 150 steps, and then to draw and to read for 300; `together`
does the latter for 450. A step of both stages takes nearly the same operations (5.52 and 5.55
billion). The base is the small world of `convergence`, and the readers are those of `pathways`.

On two cores of an AMD EPYC that other jobs shared it took 9 minutes of CPU time besides what it
shares with `convergence`. `reader` draws 41.7% of the prompts with shape and colour correctly and
`together` 52.4%, undecided (p = .07): docs/science.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.sweeps import convergence, pathways
from experiments.sweeps.convergence import DRAWN, SHAPES
from unicom_jax.sweeps.sweep import Contrast, Sweep

ANSWERED = "understanding/qa"


def get_sweep() -> Sweep:
    return Sweep(
        claim="At equal operations, a model that read first draws better.",
        config=get_config(),
        variants={"reader": read_first, "together": {}},
        seeds=(0, 1, 2),
        scores=(DRAWN, SHAPES, ANSWERED),
        contrasts=(Contrast(DRAWN, better="reader", worse="together"),),
        minutes=30,
    )


def get_config() -> ConfigDict:
    config = convergence.get_config()
    config.pretrain.steps = 450
    config.pretrain.mixture.update({"text_to_image": 0.6, "conversation": 0.4})
    config.evaluation.questions = 64
    return config


def read_first(config: ConfigDict) -> None:
    reader = pathways.get_config()
    config.stages = reader.stages
    config.align = reader.align
    config.pretrain.steps -= config.align.steps
