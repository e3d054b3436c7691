"""Keys of the semantic encoder: its stage and its two towers."""

from __future__ import annotations

import dataclasses

from unicom_jax.config.key import NEUTRAL, RECORDED, Group, Key
from unicom_jax.config.keys.training import TRAINING

REMATS = ("none", "dots", "full", "offload")
BACKENDS = ("dense", "chunked", "fused")
REMAT = Key(
    "none",
    "What the backward pass recomputes to save memory; see docs/optimizer.md.",
    choices=REMATS,
    resume=NEUTRAL,
)
ATTENTION_BACKEND = Key(
    "dense",
    "How attention is computed; see docs/configurations.md.",
    choices=BACKENDS,
    resume=NEUTRAL,
)


def tower(width: int, depth: int, heads: int, mlp_dim: int) -> dict[str, Key]:
    """Sizes that all transformers have."""
    return {
        "width": Key(width, "Channels.", least=1),
        "depth": Key(depth, "Blocks.", least=1),
        "heads": Key(heads, "Attention heads.", least=1),
        "mlp_dim": Key(mlp_dim, "Channels inside an MLP.", least=1),
    }


ENCODER = Group(
    "The stage encoder and the model that it trains; later stages use its image tower, frozen.",
    {
        **TRAINING,
        "batch_size": dataclasses.replace(TRAINING["batch_size"], default=256),
        "init_from": Key(
            "",
            "A folder of SigLIP or SigLIP 2 to start from, or WORKDIR:STAGE of another run; "
            '"": random initialisation.',
            path=True,
            before="",
        ),
        "naflex": Key(False, "Resize the position table to each picture's grid."),
        "captions": Key(
            "any",
            "Which caption of a picture is trained on; last: the most detailed one.",
            choices=("any", "last"),
            resume=RECORDED,
        ),
        "pixel_weight": Key(
            0.0,
            "Weight of the loss of predicting a patch's pixels from its feature, which preserves "
            "detail.",
            least=0,
            resume=RECORDED,
            switch=True,
        ),
        "vision": Group(
            "The image tower.",
            {
                **tower(128, 4, 4, 512),
                "remat": REMAT,
                "attention_backend": ATTENTION_BACKEND,
            },
        ),
        "text": Group(
            "The text tower.",
            {
                **tower(128, 2, 4, 512),
                "max_length": Key(
                    48, "Largest number of tokens of a caption; longer ones are truncated.", least=2
                ),
            },
        ),
    },
)
