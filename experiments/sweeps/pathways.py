"""Does a transformer that draws learn faster than learnable queries and a separate flow decoder?

    unicom sweep run experiments/sweeps/pathways.py --jobs=2

UniCom finds that Pathway I (transfusion) converges faster than Pathway II (queries), but its
pathways differ in trained parameters and in operations per step, too. Here both begin with the same
kind of reader. `query` is trained for as many steps as `transfusion`, `parameters` has as many
trained weights, and `flops` as many steps as take the same operations. Queries have the places of
the latents that they stand for.

This sweep has not been run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart
from experiments.sweeps.align import ROWS
from unicom_jax.sweeps.sweep import Contrast, Sweep

OVERALL = "generation/overall"
STEPS = 1200
QUERY = {"unified.pathway": "query"}
SMALL = {"width": 96, "depth": 3, "mlp_dim": 192}  # 923,000 trained weights; transfusion: 933,000
STEPS_OF_EQUAL_FLOPS = 428  # of 21.0 billion operations; those of transfusion take 7.5 billion


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
        scores=(OVERALL, "generation/single", "generation/colours"),
        contrasts=tuple(
            Contrast(OVERALL, better="transfusion", worse=worse)
            for worse in ("query", "parameters", "flops")
        ),
        minutes=180,
    )


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("encoder", "codec", "align", "pretrain")
    config.align.update({name: config.pretrain[name] for name in ROWS})
    config.align.update({"steps": 400, "flow_weight": 0.0})
    config.align.mixture.update({"image_to_text": 0.3, "conversation": 0.7})
    config.pretrain.steps = STEPS
    for task in config.pretrain.mixture:
        config.pretrain.mixture[task] = float(task == "text_to_image")
    return config
