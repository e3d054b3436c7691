"""From a configuration to the trainer of a stage: what a run trains and a plan compiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from unicom_jax.config import ConfigError
from unicom_jax.core.lora import BASE, Lora
from unicom_jax.core.module import iter_specs
from unicom_jax.runs.stages import noise_fold, spec_of
from unicom_jax.training.groups import read_groups
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.settings import check_on_mesh
from unicom_jax.training.stages import LOSSES
from unicom_jax.training.state import split
from unicom_jax.training.step import Stage, Trainer


def make_trainer(
    label: str, config: ConfigDict, mesh: Mesh, statistics_batches: Callable[[], Iterator[Any]]
) -> Trainer:
    """The trainer of a stage on a mesh, whose devices need not exist.

    Args:
      label: of the stage, or of one of its occurrences.
      statistics_batches: placed batches for what a stage measures at its end (the codec's latent
        statistics).

    Raises:
      ConfigError: settings that this mesh cannot serve.
    """
    spec = spec_of(label)
    settings = config[spec.name]
    check_on_mesh(spec.name, config, mesh.shape)
    stage = LOSSES[spec.loss](spec.name, config, statistics_batches)
    if settings.get("lora", {}).get("rank"):
        stage = _with_adapters(stage, settings.lora)
    groups = read_groups(settings.groups, stage.module.specs(), f"{spec.name}.groups")
    stage = dataclasses.replace(stage, name=label, freeze=(*stage.freeze, *groups.frozen()))
    trained, _ = split(stage.module.specs(), stage.freeze)
    if not any(iter_specs(trained)):
        raise ConfigError(
            f"{spec.name} trains no weight: freeze, groups or lora keep all of them frozen"
        )
    updates = settings.steps * stage.inner_steps
    optimizer, schedule = make_optimizer(settings, trained, updates, groups)
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
        noise_fold=noise_fold(config, label),
    )


def _with_adapters(stage: Stage, settings: ConfigDict) -> Stage:
    """`stage` with low-rank adapters as all that it trains; its loss computes with both."""
    module = Lora(stage.module, settings.rank, settings.alpha, settings.targets)
    return dataclasses.replace(stage, module=module, freeze=(*stage.freeze, BASE))
