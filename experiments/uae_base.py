"""Reinforcement learning from the weights of `scenes_base`: the drawer learns from an exact judge.

    unicom train    --config=experiments/scenes_base.py --workdir=runs/scenes_base
    unicom train    --config=experiments/uae_base.py    --workdir=runs/uae_base
    unicom evaluate --workdir=runs/uae_base --suite=all

The stage, the judge and the control are those of `uae_quick`; scenes have up to four objects, and
training takes three minutes instead of two. On two cores of an AMD EPYC that other jobs shared:
means of three seeds, each from its own `scenes_base`, with the range over the seeds; test split, no
guidance. u4g took 201 to 206 s of CPU time, sft 195 to 197 s.

                    before           sft, 1450 steps  u4g, 100 steps
    Scenes-GenEval  68% (64 - 71)    71% (68 - 74)    84% (76 - 91)
    questions       97% (95 - 98)    97% (94 - 99)    97% (95 - 99)
    captions        97% (96 - 98)    98% (96 - 99)    96% (94 - 98)
    edits           93% (93 - 95)    94% (94 - 95)    94% (94 - 95)

Paired by seed and prompt, Scenes-GenEval is 12.8 points above sft (95% interval 4.2 to 21.5) and
16.0 above the weights from before (6.7 to 25.2). docs/rl.md has the commands for all seeds, all
scores and more controls:

    --config.stages=sft --config.u4g.init_from= --config.sft.init_from=runs/scenes_base:sft

Captioner and drawer in turns reach 80% (72 - 85), and their descriptions have 89% of the facts of a
picture instead of 77%:

    --config.stages=g4u,u4g,g4u,u4g --config.u4g.init_from=
    --config.g4u.init_from=runs/scenes_base:sft --config.g4u.steps=10 --config.u4g.steps=40

From the weights of an earlier `scenes_base`, 34 steps, and as many scenes of one, three and four
objects as there, were too few: seeds 0, 1 and 2 reached 67, 58 and 67% (76% with these settings).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import scenes_base, uae_quick

BASE = "runs/scenes_base:sft"


def get_config() -> ConfigDict:
    config = scenes_base.get_config()
    config.data.scenes.object_weights = (1.0, 3.0, 1.0, 1.0)  # two objects fail most often
    uae_quick.learn_from_rewards(config, BASE)
    for stage in ("g4u", "u4g"):
        config[stage].max_tokens = 64
    config.u4g.steps = 100
    # The control: supervised training on the same scenes, with the mixture of the last stage.
    config.sft.update({"steps": 1450, "learning_rate": 1e-3, "schedule": "cosine", "eval_every": 0})
    return config
