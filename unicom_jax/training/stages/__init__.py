"""How the stages of the registry (`runs/stages.py`) are built: one function per kind of loss."""

from __future__ import annotations

from collections.abc import Callable

from unicom_jax.training.stages.autoencoder import autoencoder_stage
from unicom_jax.training.stages.codec import codec_stage
from unicom_jax.training.stages.encoder import encoder_stage
from unicom_jax.training.stages.policy import captioner_stage, drawer_stage, joint_stage
from unicom_jax.training.stages.unified import unified_stage
from unicom_jax.training.step import Stage

# (name of the stage's settings, configuration, function that gives placed batches for measurements
# at the stage's end) -> stage. Stages with `StageSpec.samples` also get the `tokenizer`.
Builder = Callable[..., Stage]

# By `StageSpec.loss`.
LOSSES: dict[str, Builder] = {
    "contrastive": lambda name, config, batches: encoder_stage(name, config),
    "autoencoder": autoencoder_stage,
    "codec": codec_stage,
    "unified": lambda name, config, batches: unified_stage(name, config),
    "captioner": lambda name, config, batches, tokenizer: captioner_stage(name, config, tokenizer),
    "drawer": lambda name, config, batches, tokenizer: drawer_stage(name, config, tokenizer),
    "both": lambda name, config, batches, tokenizer: joint_stage(name, config, tokenizer),
}
