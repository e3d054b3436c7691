"""Keys of what is done with a trained model: sampling and evaluation."""

from __future__ import annotations

from unicom_jax.config.key import NEUTRAL, Group, Key, each

SAMPLE = Group(
    "Defaults of `unicom sample`, of evaluation and of exported models.",
    each(
        {
            "steps": Key(20, "Flow steps of a drawing.", least=1),
            "guidance": Key(3.0, "Classifier-free guidance; 1: none.", least=0),
            "guidance_interval": Key(
                (0.0, 1.0),
                "Flow times between which guidance is used; 0 is noise, 1 the picture.",
                least=0,
                most=1,
                length=2,
                before=(0.0, 1.0),
            ),
            "sampler": Key("euler", "Solver of the flow.", choices=("euler", "heun")),
            "grid": Key(
                "even",
                "Flow times of a drawing: even: equal steps up to 1; released: those of Cheers' "
                "published code, with one step beyond 1 (pathway cheers).",
                choices=("even", "released"),
                before="even",
            ),
            "edit_start": Key(
                0.0,
                "Flow time at which an edit begins, from a mixture of noise and its source; 0: "
                "from noise alone; Cheers uses 0.1.",
                least=0,
                below=1,
                before=0.0,
            ),
            "max_tokens": Key(64, "Longest answer in tokens.", least=1),
            "watched": Key(
                (),
                "Prompts that are drawn during training, every STAGE.sample_every steps; (): four "
                "of the evaluation prompts.",
                item=str,
                before=(),
            ),
            "scored": Key(
                4,
                "Prompts of each evaluation category that are drawn and judged during training; 0: "
                "none.",
                least=0,
                before=0,
            ),
        },
        resume=NEUTRAL,
    ),
)
EVALUATION = Group(
    "How much `unicom evaluate` computes.",
    each(
        {
            "prompts": Key(32, "Prompts of each category to draw.", least=0),
            "pictures": Key(128, "Pictures to reconstruct and describe.", least=0),
            "questions": Key(64, "Questions of each kind.", least=0),
            "edits": Key(64, "Pictures to edit.", least=0),
            "shown": Key(12, "Examples of each kind in the report.", least=0, before=12),
            "think": Key(False, "Write a plan before drawing.", before=False),
            "answer_rule": Key(
                "exact",
                "How answers are compared with the true ones (docs/evaluation.md).",
                choices=("exact", "vqa", "relaxed", "anls", "choice"),
                before="exact",
            ),
            "batch_size": Key(64, "Pictures computed at once.", least=1),
        },
        resume=NEUTRAL,
    ),
)
