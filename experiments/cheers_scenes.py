"""Cheers on Scenes with up to four objects: all stages in an hour of CPU time.

    unicom train    --config=experiments/cheers_scenes.py --workdir=runs/cheers_scenes
    unicom evaluate --workdir=runs/cheers_scenes
    unicom report   --workdir=runs/cheers_scenes

The scenes and tasks are those of `scenes_base`, the model is that of `cheers_quick`, whose
docstring describes the stages and the paper's ablations.

Result: never trained. Lengths are chosen so that, at the step times of `cheers_quick`, all stages
take an hour.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import cheers_quick, scenes_base


def get_config() -> ConfigDict:
    config, scenes = cheers_quick.get_config(), scenes_base.get_config()
    config.data.update(scenes.data)
    config.data.patch = cheers_quick.PATCH
    config.stages = ("encoder", "autoencoder", "align", "pretrain", "sft")
    for name in ("align", "pretrain"):  # three copies: some documents draw several pictures
        config[name].update({"images_per_row": 8, "views_per_row": 16, "noisy_copies": 3})
        config[name].sequence_length = 256
    config.encoder.steps = 500
    config.encoder.text.max_length = scenes.encoder.text.max_length
    config.autoencoder.steps = 3000
    config.align.update({"steps": 5500, "schedule": "constant"})
    config.pretrain.update({"steps": 1500, "learning_rate": 4e-3, "schedule": "constant"})
    config.sft.update(config.pretrain)
    config.sft.update({"steps": 1000, "schedule": "linear"})
    config.align.mixture.update(scenes_base.MIXTURE)
    config.pretrain.mixture.update(scenes_base.MIXTURE)
    config.sft.mixture.update(scenes_base.SFT_MIXTURE)
    config.evaluation.update(scenes.evaluation)
    return config
