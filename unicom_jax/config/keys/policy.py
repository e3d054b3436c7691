"""Keys of the stages of reinforcement learning: docs/rl.md says what they do together."""

from __future__ import annotations

import dataclasses

from unicom_jax.config.key import RECORDED, Group, Key, each
from unicom_jax.config.keys.training import INIT_FROM, LORA, SAMPLE_EVERY, TRAINING

SPREADS = ("none", "group", "batch")
SUMS = ("rewards", "advantages")
FLOW_OBJECTIVES = ("nft", "awm", "grpo")
LENGTHS = ("constant", "own")
GATES = ("ended", "length")


def _weight(default: float, meaning: str) -> Key:
    return Key(default, meaning, least=0)


PICTURE_REWARDS = {
    "cosine": _weight(1.0, "Cosine similarity of the frozen encoder's pooled features."),
    "pixels": _weight(0.0, "Minus the mean squared difference of pixels."),
    "latents": _weight(0.0, "Minus the mean squared difference of latents."),
    "scenes": _weight(0.0, "Share of facts that the judge of Scenes finds in both pictures."),
    "own": _weight(0.0, "Your own function, named by own_reward."),
    "random": Key(
        0.0,
        "A random number from 0 to 1: a control, which teaches nothing.",
        least=0,
        before=0.0,
    ),
}
DRAWING_REWARDS = {
    "correct": Key(
        0.0,
        "1 if the judge of Scenes finds all that the caption says in the drawing, and no other "
        "object.",
        least=0,
        before=0.0,
    ),
}
CAPTION_REWARDS = {
    "long_caption": _weight(0.0, "Share of correct facts in a long caption of Scenes."),
    "caption": Key(
        0.0,
        "Share of correct facts in a caption of Scenes: objects and background.",
        least=0,
        before=0.0,
    ),
    "answers": _weight(0.0, "1 if a question is answered correctly from the caption alone."),
    "ended": _weight(0.0, "1 if the caption has words and ends by itself."),
    "length": _weight(0.0, "1 if the caption has least_tokens to most_tokens tokens."),
}
ROLLOUTS: dict[str, Key | Group] = each(
    {
        "group_size": Key(
            4, "Samples of each prompt, which are compared with each other.", least=2
        ),
        "inner_steps": Key(1, "Updates on the same samples.", least=1),
        "max_tokens": Key(96, "Longest caption, in tokens.", least=1),
        "prompt": Key("Describe in detail.", "Prompt that asks for a caption."),
        "draw_steps": Key(10, "Flow steps of a drawing.", least=1),
        "guidance": Key(
            1.0,
            "Classifier-free guidance of the drawings; 1: none (u4g with grpo needs 1).",
            least=0,
            before=1.0,
        ),
        "own_reward": Key(
            "",
            'Dotted path of a function (frozen, originals, samples) -> rewards; "": none.',
        ),
        "sum_of": Key(
            "rewards",
            "What is added: rewards: the weighted rewards; advantages: each reward after "
            "normalisation.",
            choices=SUMS,
        ),
        "kl_weight": Key(
            1e-6, "Weight of the distance to the weights from before the stage.", least=0
        ),
        "advantage_clip": Key(5.0, "Bound of advantages; 0: none.", least=0),
    },
    resume=RECORDED,
)


def _training(learning_rate: float) -> dict[str, Key | Group]:
    """Keys of training, with defaults for weights that only move a little."""
    own = {"learning_rate": learning_rate, "weight_decay": 0.0}
    changed = {
        name: dataclasses.replace(TRAINING[name], default=value) for name, value in own.items()
    }
    return {**TRAINING, **changed, "init_from": INIT_FROM, "sample_every": SAMPLE_EVERY}


CAPTIONER_STAGE: dict[str, Key | Group] = {
    **_training(1e-6),  # UAE's
    # Only the words are learned: whatever draws, and the vision projector, stay as they are.
    "freeze": Key(
        ("(?!transformer/)",),
        'Regular expressions over weight paths that are not trained, e.g. ("transformer/.*",).',
        item=str,
    ),
    "lora": LORA,
    **ROLLOUTS,
    "spread": Key(
        "none", "Standard deviation that divides advantages.", choices=SPREADS, resume=RECORDED
    ),
    "rewards": Group(
        "Weights of the rewards of a caption.",
        each(PICTURE_REWARDS | CAPTION_REWARDS, resume=RECORDED),
    ),
    **each(
        {
            "gates": Key(
                (),
                "Rewards of 0 or 1; a caption with a 0 is removed from the loss.",
                choices=GATES,
                item=str,
            ),
            "least_tokens": Key(1, "Fewest tokens for the reward length.", least=0),
            "most_tokens": Key(96, "Most tokens for the reward length.", least=1),
            "clip_low": Key(0.2, "How far a token's ratio may fall below 1.", above=0, below=1),
            "clip_high": Key(0.28, "How far a token's ratio may rise above 1.", above=0),
            "length": Key(
                "constant",
                "What a caption's sum over tokens is divided by: constant: max_tokens; own: its "
                "own length.",
                choices=LENGTHS,
            ),
            "question_tokens": Key(
                64, "Most tokens of a question, for the reward answers.", least=1
            ),
            "answer_tokens": Key(16, "Most tokens of an answer, for the reward answers.", least=1),
        },
        resume=RECORDED,
    ),
}
DRAWING: dict[str, Key] = {
    "objective": Key("nft", "DiffusionNFT, AWM, or Flow-GRPO.", choices=FLOW_OBJECTIVES),
    "times": Key(4, "Times at which a drawing is noised again (nft, awm).", least=1),
    "beta": Key(1.0, "Step of nft to either side of the old velocity.", above=0),
    "clip": Key(1e-4, "How far the ratio of a step may differ from 1 (grpo).", above=0),
    "noise_level": Key(0.7, "Noise of the SDE steps (grpo).", above=0),
    "window": Key(2, "Number of SDE steps of a drawing (grpo).", least=1),
    "window_stride": Key(1, "Steps by which the window moves (grpo).", least=1),
    "window_held": Key(25, "Batches after which the window moves (grpo).", least=1),
}
DRAWER_STAGE: dict[str, Key | Group] = {
    **_training(3e-5),  # UniGRPO's; adapters take ten times as much
    "lora": LORA,
    **ROLLOUTS,
    "spread": Key(
        "batch", "Standard deviation that divides advantages.", choices=SPREADS, resume=RECORDED
    ),
    "rewards": Group(
        "Weights of the rewards of a drawing.",
        each(PICTURE_REWARDS | DRAWING_REWARDS, resume=RECORDED),
    ),
    **each(DRAWING, resume=RECORDED),
    **each(
        {
            "captions": Key(
                "own",
                "What is drawn: own: the model's own captions; data: the most detailed caption of "
                "each picture; any: one of its captions.",
                choices=("own", "data", "any"),
            ),
            "old_decay": Key(
                0.0,
                "Draw with an average of the weights, which keeps at most this share of itself "
                "after a batch; 0: the present weights draw.",
                least=0,
                below=1,
                switch=True,
                before=0.0,
            ),
            "old_decay_rate": Key(
                0.001, "Growth of that share per update, up to old_decay.", above=0, before=0.001
            ),
            "old_decay_start": Key(
                0, "Updates before that share begins to grow.", least=0, before=0
            ),
        },
        resume=RECORDED,
    ),
}
JOINT_STAGE: dict[str, Key | Group] = {
    **CAPTIONER_STAGE,
    "freeze": TRAINING["freeze"],
    "rewards": Group(
        "Weights of the rewards of a drawing and of a caption; a caption also has the mean of its "
        "drawings.",
        each(PICTURE_REWARDS | DRAWING_REWARDS | CAPTION_REWARDS, resume=RECORDED),
    ),
    **each(DRAWING, resume=RECORDED),
    **each(
        {
            "drawings": Key(
                8, "Drawings of each caption, which are compared with each other.", least=2
            ),
            "drawing_spread": Key(
                "batch",
                "Standard deviation that divides the advantages of drawings.",
                choices=SPREADS,
            ),
            "drawing_weight": Key(
                1.0, "Weight of the objective of drawings beside that of captions.", above=0
            ),
            "drawing_kl_weight": Key(
                1e-4,
                "Weight, within drawing_weight, of the distance of drawings to the weights from "
                "before the stage.",
                least=0,
            ),
        },
        resume=RECORDED,
    ),
}
CAPTIONER = Group("The stage g4u: reinforcement learning of the captioner.", CAPTIONER_STAGE)
DRAWER = Group("The stage u4g: reinforcement learning of the drawer.", DRAWER_STAGE)
JOINT = Group(
    "The stage jointly: reinforcement learning of captioner and drawer at once.", JOINT_STAGE
)
