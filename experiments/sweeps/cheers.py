"""The ablations of Cheers' paper, with the model of `cheers_quick`.

    unicom sweep run experiments/sweeps/cheers.py --jobs=2

The paper reports, each with its own model and data:

    details in the flow head, through a gate     GenEval .17 without, .30 with
    SigLIP sees painted pixels, not latents      MMBench 23.2 without, 66.1 with
    2 x 2 tokens of a picture in one slot        no scores without

The variants of a seed share the encoder and the autoencoder, except `uncompressed`: sides of
pictures must be multiples of the tokens of a slot, so its data count as different. It has 36 slots
per picture instead of nine, and rows long enough for the same documents. It sees as much as the
others in the same number of steps, which take longer; the table has the CPU time of each.
`no_pixels` has no decoder, and so no group of the decoder's weights.

This sweep has not been run. --dry-run predicts 4 hours 16 minutes of CPU time without the scores,
on two cores of an AMD EPYC.
"""

from __future__ import annotations

from experiments import cheers_quick
from unicom_jax.sweeps.sweep import Contrast, Sweep

DRAWN, ANSWERED = "generation/overall", "understanding/qa"


def get_sweep() -> Sweep:
    return Sweep(
        claim="Gated details, painted pixels and slots of 2 x 2 tokens each help a small Cheers.",
        config=cheers_quick.get_config(),
        variants={
            "full": {},
            "no_gate": {"unified.cheers.gate": False},
            "no_pixels": {"unified.cheers.pixels": False, "pretrain.groups": ()},
            "uncompressed": {
                "unified.fold": 1,
                "pretrain.sequence_length": 640,
                "sft.sequence_length": 640,
            },
        },
        seeds=(0, 1, 2),
        scores=(DRAWN, "generation/single", ANSWERED, "understanding/caption"),
        contrasts=(
            Contrast(DRAWN, better="full", worse="no_gate", paper="+.13 (GenEval)"),
            Contrast(ANSWERED, better="full", worse="no_pixels", paper="+42.9 (MMBench)"),
            Contrast(DRAWN, better="full", worse="uncompressed"),
            Contrast(ANSWERED, better="full", worse="uncompressed"),
        ),
        minutes=300,
    )
