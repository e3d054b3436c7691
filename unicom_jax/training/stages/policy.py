"""Stages of reinforcement learning: rollouts are prepared, the loss is a policy's objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.rl.build import build_captioner, build_drawer
from unicom_jax.rl.captioner import Captioner
from unicom_jax.rl.drawer import Drawer
from unicom_jax.training.step import Stage

Config = Mapping[str, Any]


def captioner_stage(name: str, config: Config, tokenizer: Tokenizer) -> Stage:
    """The captioner learns; see `rl.captioner`."""
    return _stage(name, config[name], build_captioner(name, config, tokenizer), draws=False)


def drawer_stage(name: str, config: Config, tokenizer: Tokenizer) -> Stage:
    """The drawer learns; see `rl.drawer`."""
    return _stage(name, config[name], build_drawer(name, config, tokenizer), draws=True)


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
    )
