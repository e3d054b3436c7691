"""What text and drawing lose when the other one gets more of the documents.

    unicom sweep run experiments/sweeps/mixture.py --workdir=runs/mixture
    unicom sweep table experiments/sweeps/mixture.py --workdir=runs/mixture   # writes its results
    python -m experiments.mixture_law --workdir=runs/mixture

The base is that of `isoflop` at one size and budget; the variants have other shares of drawing
documents. Whatever they were trained on, all are evaluated on the same rows of captions alone and
on the same rows of drawings alone. docs/scaling.md has what was found.
"""

from __future__ import annotations

from experiments.sweeps import isoflop
from unicom_jax.sweeps.sweep import Contrast, Sweep

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)  # of drawing documents
WIDTH, BUDGET = 48, 3e11
ONLY_TEXT, ONLY_FLOW = "pretrain:eval/text/text", "pretrain:eval/flow/text_to_image"


def variant_name(share: float) -> str:
    """A name that `experiments.mixture_law` reads."""
    return f"drawing_{share}"


def variant(share: float) -> dict[str, object]:
    mixture = {"text": 1 - share, "text_to_image": share}
    return {
        **isoflop.variant(BUDGET, WIDTH),
        **{f"pretrain.mixture.{task}": part for task, part in mixture.items()},
        "pretrain.eval_by_task": True,
        "pretrain.eval_batches": 32,
    }


def get_sweep() -> Sweep:
    return Sweep(
        claim="More drawing documents make drawing better and text worse.",
        config=isoflop.get_config(),
        variants={variant_name(share): variant(share) for share in SHARES},
        seeds=(0, 1, 2),
        scores=(ONLY_TEXT, ONLY_FLOW),
        contrasts=(
            Contrast(ONLY_FLOW, better="drawing_0.75", worse="drawing_0.25"),
            Contrast(ONLY_TEXT, better="drawing_0.25", worse="drawing_0.75"),
        ),
        minutes=20,
        split="development",
    )
