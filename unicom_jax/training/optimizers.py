"""Optimisers and schedules from the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from unicom_jax.core.module import ParamSpec, Specs, map_specs
from unicom_jax.training.groups import Group, Groups
from unicom_jax.training.muon import muon

NEVER_GIVE_UP = 2**31 - 1  # the loop, not optax, decides when too many steps were skipped
MOMENT_DTYPES = ("float32", "bfloat16")


def make_schedule(config: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Learning rate over `steps`: linear warm-up, then one of four shapes.

    "constant"; "cosine" or "linear" down to 0; "wsd" (warm-up, stable, decay: Hu et al. 2024,
    MiniCPM): constant, then linear to 0 over the last `decay_share` of the steps. A longer "wsd"
    run agrees with a shorter one until the shorter one's decay begins.
    """
    peak, warmup = config["learning_rate"], config["warmup_steps"]
    after = max(steps - warmup, 1)

    def wsd() -> optax.Schedule:
        decay = min(max(round(config["decay_share"] * steps), 1), after)
        fall = optax.linear_schedule(peak, 0.0, decay)
        return optax.join_schedules([optax.constant_schedule(peak), fall], [after - decay])

    shapes: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, after),
        "linear": lambda: optax.linear_schedule(peak, 0.0, after),
        "wsd": wsd,
    }
    if config["schedule"] not in shapes:
        raise ValueError(f"schedule={config['schedule']!r} is not one of {', '.join(shapes)}")
    rise = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, shapes[config["schedule"]]()], [warmup])


def _is_matrix(spec: ParamSpec) -> bool:
    return sum(axis != "layers" for axis in spec.axes) >= 2


def make_optimizer(
    config: Mapping[str, Any], specs: Specs, steps: int, groups: Groups | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipping, then AdamW or Muon, all skipped when a gradient is not finite.

    Args:
      config: learning_rate, schedule, decay_share, warmup_steps, optimizer, b1, b2, eps, mu_dtype,
        weight_decay, clip_norm.
      specs: specs of the trained weights; tells which are matrices (decayed) and which use Muon.
      steps: length of the run.
      groups: factors of the learning rate and weight decay of some weights. They do not change the
        optimiser's state. Clipping uses the norm of all gradients together.

    Returns:
      The transformation and its schedule.
    """
    groups, schedule = groups or Groups(), make_schedule(config, steps)
    if config["mu_dtype"] not in MOMENT_DTYPES:
        raise ValueError(
            f"mu_dtype={config['mu_dtype']!r} is not one of {', '.join(MOMENT_DTYPES)}"
        )
    numbers = {name: config[name] for name in ("b1", "b2", "eps", "mu_dtype")}

    decay, decayed = config["weight_decay"], map_specs(_is_matrix, specs)

    def adamw() -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(**numbers),
            _decay_by_group(optax.add_decayed_weights(decay, decayed), groups),
            optax.scale_by_learning_rate(schedule),
        )

    def muon_with_decay() -> optax.GradientTransformation:
        shrink = optax.add_decayed_weights(lambda n: -decay * schedule(n), decayed)
        return optax.chain(muon(schedule, specs, **numbers), _decay_by_group(shrink, groups))

    makers = {"adamw": adamw, "muon": muon_with_decay}
    if config["optimizer"] not in makers:
        raise ValueError(f"optimizer={config['optimizer']!r} is not one of {', '.join(makers)}")
    rule = _rate_by_group(makers[config["optimizer"]](), groups)
    chain = optax.chain(optax.clip_by_global_norm(config["clip_norm"]), rule)
    return optax.apply_if_finite(chain, NEVER_GIVE_UP), schedule


def _scaled(tree: Any, groups: Groups, factor: Callable[[Group], float]) -> Any:
    """A tree with the paths of all trained weights, each leaf times the factor of its group."""

    def scale(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        group = groups.of(tuple(key.key for key in path))
        return leaf * factor(group) if group else leaf

    return jax.tree.map_with_path(scale, tree)


def _decay_by_group(
    decay: optax.GradientTransformation, groups: Groups
) -> optax.GradientTransformation:
    """`decay`, which adds a multiple of the weights, times the weight-decay factor of the group."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return decay.update(updates, state, _scaled(params, groups, lambda own: own.weight_decay))

    return optax.GradientTransformation(decay.init, update)


def _rate_by_group(
    rule: optax.GradientTransformation, groups: Groups
) -> optax.GradientTransformation:
    """`rule` with its updates, including decay, times the learning-rate factor of the group."""
    rule = optax.with_extra_args_support(rule)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = rule.update(grads, state, params, **extra)
        return _scaled(updates, groups, lambda own: own.learning_rate), state

    return optax.GradientTransformationExtraArgs(rule.init, update)
