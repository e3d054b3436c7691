"""Reinforcement-learning stages: `prepare` makes rollouts, the loss is a policy's objective."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.module import iter_specs
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.rl.build import build_captioner, build_drawer, build_joint
from unicom_jax.rl.captioner import Captioner
from unicom_jax.rl.drawer import Drawer
from unicom_jax.rl.joint import OF_DRAWINGS
from unicom_jax.training.step import Stage

Config = Mapping[str, Any]


def captioner_stage(name: str, config: Config, tokenizer: Tokenizer) -> Stage:
    """Trains the captioner; see `rl.captioner`."""
    return _stage(name, config[name], build_captioner(name, config, tokenizer), draws=False)


def drawer_stage(name: str, config: Config, tokenizer: Tokenizer) -> Stage:
    """Trains the drawer; see `rl.drawer`."""
    return _stage(name, config[name], build_drawer(name, config, tokenizer), draws=True)


def joint_stage(name: str, config: Config, tokenizer: Tokenizer) -> Stage:
    """Trains both; see `rl.joint`. Frozen is what neither the captioner's stage nor the drawer's
    trains: in a family whose reader and drawer have separate weights, each stage freezes the other.
    """
    settings, policy = config[name], build_joint(name, config, tokenizer)
    own = settings["drawing_weight"]
    weights = {"policy": own, "kl": own * settings["drawing_kl_weight"]}
    stage = _stage(name, settings, policy.captioner, draws=True)
    return dataclasses.replace(
        stage,
        loss=policy.loss,
        freeze=(*_frozen_for_both(policy.captioner.models.unified), *settings["freeze"]),
        weights=stage.weights | {OF_DRAWINGS + term: weight for term, weight in weights.items()},
        prepare=policy.prepare,
        rollouts=policy.rollouts,
    )


def _stage(name: str, settings: Config, policy: Captioner | Drawer, *, draws: bool) -> Stage:
    model = policy.models.unified
    return Stage(
        name=name,
        module=model,
        loss=policy.loss,
        weights={"policy": 1.0, "kl": settings["kl_weight"]},
        freeze=(*model.frozen(draws=draws), *settings["freeze"]),
        prepare=policy.prepare,
        inner_steps=settings["inner_steps"],
        rollouts=policy.rollouts,
        old=old_share(settings) if settings.get("old_decay") else None,
    )


def _frozen_for_both(model: UnifiedModel) -> tuple[str, ...]:
    """Patterns of the weights that neither a stage with draws nor one without trains."""
    paths = ["/".join(path) for path, _ in iter_specs(model.specs())]
    both = (
        one if one == other else f"(?={one})(?:{other})"
        for one in model.frozen(draws=True)
        for other in model.frozen(draws=False)
    )
    return tuple(pattern for pattern in both if any(re.match(pattern, path) for path in paths))


def old_share(settings: Config) -> Callable[[jax.Array], jax.Array]:
    """η as a function of the number n of updates: after a batch θ_old ← η θ_old + (1 - η) θ, and
    θ_old draws ("DiffusionNFT", arXiv 2509.16117).

    The released schedules are min(.001 n, .5), and 0 up to update 75, then
    min(.0075 (n - 75), .999).
    """
    most, rate = settings["old_decay"], settings["old_decay_rate"]
    start = settings["old_decay_start"]
    return lambda updates: jnp.minimum(rate * jnp.maximum(updates - start, 0), most)
