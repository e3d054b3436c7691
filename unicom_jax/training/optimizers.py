"""Optimisers and schedules from the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optax

from unicom_jax.core.module import ParamSpec, Specs, map_specs
from unicom_jax.training.muon import muon

NEVER_GIVE_UP = 2**31 - 1  # the loop decides when too many steps were skipped, not optax


def make_schedule(config: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Learning rate over `steps`: linear warm-up, then constant, cosine or linear to 0."""
    peak, warmup = config["learning_rate"], config["warmup_steps"]
    decay_steps = max(steps - warmup, 1)
    shapes: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps),
        "linear": lambda: optax.linear_schedule(peak, 0.0, decay_steps),
    }
    if config["schedule"] not in shapes:
        raise ValueError(f"schedule={config['schedule']!r} is not one of {', '.join(shapes)}")
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, shapes[config["schedule"]]()], [warmup])


def _is_matrix(spec: ParamSpec) -> bool:
    return sum(axis != "layers" for axis in spec.axes) >= 2


def make_optimizer(
    config: Mapping[str, Any], specs: Specs, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipping, then AdamW or Muon, all skipped when a gradient is not finite.

    Args:
      config: learning_rate, schedule, warmup_steps, optimizer, b1, b2, eps, weight_decay,
        clip_norm.
      specs: of the trained weights; says which are matrices (decayed) and which go to Muon.
      steps: length of the run.

    Returns:
      The transformation and its schedule.
    """
    schedule = make_schedule(config, steps)
    decayed = map_specs(_is_matrix, specs)

    def adamw() -> optax.GradientTransformation:
        return optax.adamw(
            schedule,
            b1=config["b1"],
            b2=config["b2"],
            eps=config["eps"],
            weight_decay=config["weight_decay"],
            mask=decayed,
        )

    def muon_with_decay() -> optax.GradientTransformation:
        update = muon(schedule, specs, b1=config["b1"], b2=config["b2"], eps=config["eps"])
        decay = optax.add_decayed_weights(lambda n: -config["weight_decay"] * schedule(n), decayed)
        return optax.chain(update, decay)

    makers = {"adamw": adamw, "muon": muon_with_decay}
    if config["optimizer"] not in makers:
        raise ValueError(f"optimizer={config['optimizer']!r} is not one of {', '.join(makers)}")
    chain = optax.chain(
        optax.clip_by_global_norm(config["clip_norm"]), makers[config["optimizer"]]()
    )
    return optax.apply_if_finite(chain, NEVER_GIVE_UP), schedule
