"""Cheers on Scenes with up to four objects: all stages in an hour of CPU time.

    unicom train    --config=experiments/cheers_scenes.py --workdir=runs/cheers_scenes
    unicom evaluate --workdir=runs/cheers_scenes
    unicom report   --workdir=runs/cheers_scenes

The scenes and tasks are those of `scenes_base`, the model is that of `cheers_quick`, whose
docstring describes the stages and the paper's ablations: the copy of the decoder trains in
`pretrain` and is frozen in `sft`, whose steps cost less.

Result: never trained. Lengths are chosen so that, at the step times of `cheers_quick`, all
stages take an hour: four minutes for the encoder, seven for the autoencoder, 17 for `pretrain`,
26 for `sft`, and the rest for compilation.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import cheers_quick, scenes_base


def get_config() -> ConfigDict:
    config, scenes = cheers_quick.get_config(), scenes_base.get_config()
    config.data.update(scenes.data)
    config.data.patch = cheers_quick.PATCH
    config.stages = ("encoder", "autoencoder", "pretrain", "sft")
    config.encoder.steps = 200
    config.encoder.text.max_length = scenes.encoder.text.max_length
    config.autoencoder.steps = 1000
    # Three copies: some documents draw several pictures.
    config.pretrain.update({"images_per_row": 8, "views_per_row": 16, "noisy_copies": 3})
    config.pretrain.update({"sequence_length": 256, "steps": 300, "schedule": "constant"})
    config.pretrain.mixture.update(scenes_base.MIXTURE)
    config.sft.update(config.pretrain)
    config.sft.update({"steps": 500, "schedule": "linear"})
    config.sft.update({"groups": (), "freeze": cheers_quick.HELD_AT_LAST})
    config.sft.mixture.update(scenes_base.SFT_MIXTURE)
    config.evaluation.update({"prompts": 32, "pictures": 128, "questions": 64, "edits": 64})
    return config
