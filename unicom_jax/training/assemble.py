"""Builds the trainer of a stage, which a run trains and a plan compiles, from a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.config import ConfigError
from unicom_jax.core.lora import BASE, Lora, adapters
from unicom_jax.core.module import Specs, iter_specs
from unicom_jax.core.transfer import Path
from unicom_jax.runs.stages import noise_fold, seed_of, spec_of
from unicom_jax.training.groups import Groups, read_groups
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.settings import check_on_mesh
from unicom_jax.training.stages import LOSSES
from unicom_jax.training.state import check_freeze, split
from unicom_jax.training.step import Stage, Trainer
from unicom_jax.training.transfer import Factors, factors, for_duration


def make_trainer(
    label: str,
    config: ConfigDict,
    mesh: Mesh,
    statistics_batches: Callable[[], Iterator[Any]],
    tokenizer: Tokenizer | None = None,
) -> Trainer:
    """The trainer of a stage on a mesh, whose devices need not exist.

    Args:
      label: label of the stage, or of one of its occurrences.
      statistics_batches: placed batches on which a stage measures at its end (the codec's latent
        statistics).
      tokenizer: the run's tokenizer; stages that sample texts need it.

    Raises:
      ConfigError: settings that this mesh does not support, or a missing tokenizer.
    """
    spec = spec_of(label)
    settings = config[spec.name]
    check_on_mesh(spec.name, config, mesh.shape)
    if spec.samples and tokenizer is None:
        raise ConfigError(
            f"the stage {label} samples texts and needs a tokenizer for that; it can be trained, "
            "but not planned"
        )
    own = {"tokenizer": tokenizer} if spec.samples else {}
    stage = LOSSES[spec.loss](spec.name, config, statistics_batches, **own)
    check_freeze(stage.module.specs(), settings.freeze, f"{spec.name}.freeze")
    if settings.get("lora", {}).get("rank"):
        stage = _with_adapters(stage, settings.lora, f"{spec.name}.lora.targets")
    groups = read_groups(settings.groups, stage.module.specs(), f"{spec.name}.groups")
    stage = dataclasses.replace(stage, name=label, freeze=(*stage.freeze, *groups.frozen()))
    trained, held = split(stage.module.specs(), stage.freeze)
    if not any(iter_specs(trained)):
        raise ConfigError(
            f"{spec.name} trains no weight: freeze, groups or lora keep all of them frozen"
        )
    _check_nothing_is_idle(spec.name, groups, trained, held)
    # Settings count steps, and the optimiser counts updates, of which a step may make several.
    rates, updates = for_duration(settings), settings.steps * stage.inner_steps
    rates["warmup_steps"] *= stage.inner_steps
    optimizer, schedule = make_optimizer(
        rates, trained, updates, groups, _transfer(stage, settings, trained)
    )
    return Trainer(
        stage,
        optimizer,
        schedule,
        mesh,
        seed_of(config, label),
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


def _check_nothing_is_idle(name: str, groups: Groups, trained: Specs, held: Specs) -> None:
    """Raises ConfigError for settings without effect: adapters that the stage freezes, and a group
    of factors for weights none of which it trains."""
    for layer, adapter in adapters(held).items():
        if "a" in adapter:
            raise ConfigError(
                f"{name}.lora.targets adapts {'/'.join(layer)}, which freeze, groups or the "
                "pathway keep frozen; name other layers, or unfreeze it"
            )
    members = {groups.of(path) for path, _ in iter_specs(trained)}
    for group in groups.groups:
        if not group.frozen and group not in members:
            raise ConfigError(
                f"{name}.groups: {group.label!r} matches only weights that freeze, lora or the "
                "pathway keep frozen; leave the group out"
            )


def _transfer(stage: Stage, settings: ConfigDict, trained: Specs) -> dict[Path, Factors]:
    """Factors of the trained weights of a model that grew from a smaller one; {} for others."""
    if not (tuned := getattr(stage.module, "tuned", None)):
        return {}
    return factors(settings.optimizer, trained, tuned.specs(), stage.module.grown())


def _with_adapters(stage: Stage, settings: ConfigDict, key: str) -> Stage:
    """`stage` with low-rank adapters, which alone are trained; the loss uses both."""
    module = Lora(stage.module, settings.rank, settings.alpha, settings.targets)
    try:
        module.specs()
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    return dataclasses.replace(stage, module=module, freeze=(*stage.freeze, BASE))
