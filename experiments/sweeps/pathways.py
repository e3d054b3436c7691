"""Does a transformer that draws learn faster than learnable queries and a separate flow decoder?

    unicom sweep run experiments/sweeps/pathways.py --workdir=runs/sweeps/drawing_world

UniCom finds that Pathway I (transfusion) converges faster than Pathway II (queries), but its
pathways differ in trained parameters and in operations per step, too. Here both begin with the same
kind of reader. `query` is trained for as many steps as `transfusion`, `parameters` has as many
trained weights, and `flops` as many steps as take the same operations. Queries have the places of
the latents that they stand for. Operations are those of the stage that draws; the readers of all
variants are trained for 150 steps of 5.5 billion.

The base is the small world of `convergence`. On two cores of an AMD EPYC that other jobs shared it
took 21 minutes of CPU time besides what it shares. Transfusion draws 51.0% of the prompts with
shape and colour correctly, `query` 59.4% (undecided), `parameters` 38.2% (p = .03) and `flops`
18.1% (p = .07): docs/science.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.sweeps import convergence
from experiments.sweeps.convergence import DRAWN, SHAPES
from unicom_jax.sweeps.sweep import Contrast, Sweep

QUERY = {
    "unified.pathway": "query",
    "unified.flow_decoder.width": 128,
    "unified.flow_decoder.depth": 4,
    "unified.flow_decoder.mlp_dim": 512,
}
SMALL = {"width": 96, "depth": 2, "mlp_dim": 128}  # 735,000 trained weights; transfusion: 730,000
STEPS_OF_EQUAL_FLOPS = 137  # of 12.1 billion operations; those of transfusion take 5.55 billion


def get_sweep() -> Sweep:
    return Sweep(
        claim="Transfusion draws better than queries at equal steps, weights and operations.",
        config=get_config(),
        variants={
            "transfusion": {},
            "query": QUERY,
            "parameters": {**QUERY, **{f"unified.flow_decoder.{k}": v for k, v in SMALL.items()}},
            "flops": {**QUERY, "pretrain.steps": STEPS_OF_EQUAL_FLOPS},
        },
        seeds=(0, 1, 2),
        scores=(DRAWN, SHAPES, "pretrain:eval/flow"),
        contrasts=tuple(
            Contrast(DRAWN, better="transfusion", worse=worse)
            for worse in ("query", "parameters", "flops")
        ),
        minutes=30,
    )


def get_config() -> ConfigDict:
    config = convergence.get_config()
    config.stages = ("encoder", "codec", "align", "pretrain")
    config.align.update({"steps": 150, "flow_weight": 0.0})
    config.align.mixture.update({"image_to_text": 0.3, "conversation": 0.7})
    return config
