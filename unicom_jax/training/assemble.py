"""From a configuration to the trainer of a stage: what a run trains and a plan compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.build import image_policy
from unicom_jax.config import ConfigError
from unicom_jax.core.lora import BASE, Lora
from unicom_jax.core.module import iter_specs
from unicom_jax.training.groups import read_groups
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.settings import check_on_mesh
from unicom_jax.training.stages import codec, encoder, unified
from unicom_jax.training.state import split
from unicom_jax.training.step import Stage, Trainer


def make_trainer(
    name: str, config: ConfigDict, mesh: Mesh, statistics_batches: Callable[[], Iterator[Any]]
) -> Trainer:
    """The trainer of stage `name` on a mesh, whose devices need not exist.

    Args:
      statistics_batches: placed batches from which `codec` takes its latent statistics at its end.

    Raises:
      ConfigError: settings that this mesh cannot serve.
    """
    settings = config[name]
    check_on_mesh(name, config, mesh.shape)
    stage = _make_stage(name, config, statistics_batches)
    if settings.get("lora", {}).get("rank"):
        stage = _with_adapters(stage, settings.lora)
    groups = read_groups(settings.groups, stage.module.specs(), f"{name}.groups")
    stage = dataclasses.replace(stage, freeze=(*stage.freeze, *groups.frozen()))
    trained, _ = split(stage.module.specs(), stage.freeze)
    if not any(iter_specs(trained)):
        raise ConfigError(f"{name} trains no weight: freeze, groups or lora hold all of them")
    optimizer, schedule = make_optimizer(settings, trained, settings.steps, groups)
    return Trainer(
        stage,
        optimizer,
        schedule,
        mesh,
        config.seed,
        settings.accumulate,
        settings.ema_decay,
        settings.ema_warmup,
        offload_optimizer=settings.offload_optimizer,
        spike_factor=settings.spike_factor,
        gradient_dtype=config.gradient_dtype,
        groups=groups,
        diagnostics=settings.diagnostics,
    )


def _make_stage(
    name: str, config: ConfigDict, statistics_batches: Callable[[], Iterator[Any]]
) -> Stage:
    makers: dict[str, Callable[[], Stage]] = {
        "encoder": lambda: encoder.encoder_stage(config),
        "codec": lambda: codec.codec_stage(config, statistics_batches),
    }
    return makers.get(name, lambda: unified.unified_stage(name, config))()


def _with_adapters(stage: Stage, settings: ConfigDict) -> Stage:
    """`stage` with low-rank adapters as all that it trains; its loss computes with both."""
    module = Lora(stage.module, settings.rank, settings.alpha, settings.targets)
    return dataclasses.replace(stage, module=module, freeze=(*stage.freeze, BASE))


def tokens_per_step(name: str, config: ConfigDict) -> int:
    """Slots (unified stages) or patches (encoder, codec) that one step reads."""
    settings = config[name]
    if name in unified.NAMES:
        return settings.batch_size * settings.sequence_length
    return settings.batch_size * image_policy(config).max_patches(
        config.data.patch, config.codec.pool
    )
