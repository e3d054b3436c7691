"""Reinforcement learning from the quickstart's weights: the drawer learns from an exact judge.

    make quickstart
    unicom train    --config=experiments/uae_quick.py --workdir=runs/uae_quick
    unicom evaluate --workdir=runs/uae_quick --suite=all
    unicom report   --workdir=runs/uae_quick

The stage u4g draws captions of any detail eight times each, and the reward is 1 if the judge finds
in the drawing all that the caption says, and nothing else. Scenes have one or two objects.

On two cores of an AMD EPYC that other jobs shared, one run each from seed 0, test split, with 95%
intervals. Both stages took the same CPU time: u4g 289 s, sft 295 s.

                    before           sft, 1100 steps   u4g, 81 steps
    Scenes-GenEval
      no guidance   60% (55 - 64)    63% (58 - 67)     93% (90 - 95)
      guidance 2    64% (59 - 68)    71% (67 - 75)     96% (93 - 97)
    questions       87% (82 - 90)    95% (92 - 97)     87% (83 - 90)
    captions        92% (86 - 96)    96% (91 - 98)     94% (88 - 97)
    edits           58% (46 - 69)    56% (44 - 68)     44% (32 - 56)

Paired by prompt and with guidance 2, u4g is 24.7 points above sft (20.6 to 29.2). Its drawings of a
prompt are much less varied, and edits become worse.

docs/rl.md has all scores, what is lost, and what did not work. The controls:

    --config.stages=sft --config.u4g.init_from= --config.sft.init_from=runs/quickstart:pretrain

is supervised training on the same scenes, and

    --config.u4g.rewards.correct=1e-9 --config.u4g.rewards.random=1

is a random reward (the real one is only reported): 55% (51 - 60) after 25 steps, no guidance.
Without training, `unicom evaluate --suite=generations --best-of=4` lets the judge choose among four
drawings: 94% (90 - 95) before, no guidance. The captioner's stage instead of the drawer's:

    --config.stages=g4u --config.u4g.init_from= --config.g4u.init_from=runs/quickstart:pretrain

After 40 steps (85 s) with the reward `caption`, which needs no drawings, greedy descriptions have
99% of the facts of a picture instead of 84%, and unified/agreement, drawn without guidance, is 98%
(96 - 99) instead of 89% (86 - 92).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart

BASE = "runs/quickstart:pretrain"


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("u4g",)
    config.data.scenes.object_weights = (1.0, 3.0)  # one object is drawn correctly already
    config.evaluation.update({"prompts": 64, "questions": 64, "edits": 64})
    # Rollouts are drawn without guidance, and drawing without it is what improves most.
    config.sample.guidance = 1.0
    for stage in ("g4u", "u4g"):
        config[stage].update(
            {
                "max_tokens": 40,
                "group_size": 8,
                "draw_steps": 8,
                "warmup_steps": 5,
                "log_every": 10,
                "eval_every": 50,
                "eval_batches": 2,
            }
        )
    config.u4g.update(
        {
            "init_from": BASE,
            "captions": "any",
            "batch_size": 16,
            "times": 2,
            "steps": 81,  # after 70, all drawings of a batch were correct
            "learning_rate": 3e-4,
            "kl_weight": 1e-4,
        }
    )
    config.u4g.rewards.update({"cosine": 0.0, "correct": 1.0})
    config.g4u.update({"batch_size": 8, "steps": 40, "learning_rate": 1e-3, "kl_weight": 1e-3})
    config.g4u.rewards.update({"cosine": 0.0, "caption": 1.0})
    # The control: supervised training on the same scenes, as in pretraining and for as long.
    config.sft.update(config.pretrain)
    config.sft.update({"steps": 1100, "learning_rate": 5e-3, "eval_every": 0})
    return config
