"""Cheers on Scenes with up to four objects: all stages in an hour of CPU time.

    unicom train    --config=experiments/cheers_scenes.py --workdir=runs/cheers_scenes
    unicom evaluate --workdir=runs/cheers_scenes
    unicom report   --workdir=runs/cheers_scenes

The scenes and tasks are those of `scenes_base`, the model is that of `cheers_quick`, whose
docstring describes the stages and the paper's ablations.

Result: never trained. The lengths of the stages follow from the step times of `cheers_quick` (.16
seconds of CPU time per step of the autoencoder, .7 of align, 1.2 of the last two stages) and add up
to an hour.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import cheers_quick, scenes_base


def get_config() -> ConfigDict:
    config, scenes = cheers_quick.get_config(), scenes_base.get_config()
    config.data.update(scenes.data)
    config.data.patch = cheers_quick.PATCH
    config.stages = ("encoder", "autoencoder", "align", "pretrain", "sft")
    for name in ("align", "pretrain"):  # three copies: some documents draw several
        config[name].update({"images_per_row": 8, "views_per_row": 16, "noisy_copies": 3})
    config.encoder.steps = 500
    config.encoder.text.max_length = scenes.encoder.text.max_length
    config.autoencoder.steps = 4000
    config.align.steps = 1500
    config.pretrain.update({"steps": 400, "schedule": "constant"})
    config.sft.update(config.pretrain)
    config.sft.update({"steps": 300, "schedule": "linear"})
    config.align.mixture.update(scenes_base.MIXTURE)
    config.pretrain.mixture.update(scenes_base.MIXTURE)
    config.sft.mixture.update(scenes_base.SFT_MIXTURE)
    config.evaluation.update(scenes.evaluation)
    return config
