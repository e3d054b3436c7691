"""The ablations of Cheers' paper, in a small world.

    unicom sweep run experiments/sweeps/cheers.py

The paper reports, each with its own model and data:

    details in the flow head, through a gate     GenEval .17 without, .30 with
    SigLIP sees painted pixels, not latents      MMBench 23.2 without, 66.1 with
    2 x 2 tokens of a picture in one slot        no scores without

The model is that of `cheers_quick`, on scenes of one large object at 32 px: three shapes in three
colours on white. A picture has 16 tokens in 4 slots (`uncompressed`: in 16). All stages train for
about a minute, and the flow loss of held-out documents is compared, too.

The variants of a seed share the encoder and the autoencoder, except `uncompressed`: sides of
pictures must be multiples of the tokens of a slot, so its data count as different. It sees as much
as the others in the same number of steps; the table has the CPU time of each. A variant without a
decoder or a gate has no group of their weights.

On two cores of an AMD EPYC that other jobs shared it took 23 minutes of CPU time, and no difference
was decided: docs/science.md has the figures.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import cheers_quick
from experiments.cheers_quick import DECODER, GATE
from experiments.sweeps.convergence import DRAWN, SHAPES
from unicom_jax.sweeps.sweep import Contrast, Sweep

ANSWERED, FLOW = "understanding/qa", "pretrain:eval/flow"


def get_sweep() -> Sweep:
    return Sweep(
        claim="Gated details, painted pixels and slots of 2 x 2 tokens each help a small Cheers.",
        config=get_config(),
        variants={
            "full": {},
            "no_gate": {"unified.cheers.gate": False, "pretrain.groups": (DECODER,)},
            "no_pixels": {"unified.cheers.pixels": False, "pretrain.groups": (GATE,)},
            "uncompressed": {"unified.fold": 1, "pretrain.sequence_length": 272},
        },
        seeds=(0, 1, 2),
        scores=(DRAWN, SHAPES, ANSWERED, "understanding/caption", FLOW),
        contrasts=(
            Contrast(DRAWN, better="full", worse="no_gate", paper="+.13 (GenEval)"),
            Contrast(FLOW, better="full", worse="no_gate"),
            Contrast(ANSWERED, better="full", worse="no_pixels", paper="+42.9 (MMBench)"),
            Contrast(FLOW, better="full", worse="no_pixels"),
            Contrast(DRAWN, better="full", worse="uncompressed"),
            Contrast(ANSWERED, better="full", worse="uncompressed"),
        ),
        minutes=45,
    )


def get_config() -> ConfigDict:
    """The small world: two frozen stages and one unified stage, which trains everything else."""
    config = cheers_quick.get_config()
    config.stages = ("encoder", "autoencoder", "pretrain")
    config.data.image_size = 32
    config.data.scenes.update(
        {
            "sizes": ((32, 32),),
            "object_weights": (1.0,),
            "shapes": ("circle", "triangle", "cross"),
            "colours": ("red", "green", "blue"),
            "backgrounds": ("white",),
        }
    )
    config.encoder.steps = 100
    config.autoencoder.steps = 500
    config.pretrain.update(
        {"steps": 200, "schedule": "cosine", "sequence_length": 128, "eval_every": 200}
    )
    config.evaluation.update({"prompts": 96, "pictures": 64, "questions": 64, "edits": 0})
    return config
