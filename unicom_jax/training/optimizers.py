"""Optimisers and schedules from the config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from unicom_jax.core.module import ParamSpec, Specs, map_specs
from unicom_jax.core.transfer import Path
from unicom_jax.training.groups import Group, Groups
from unicom_jax.training.muon import muon
from unicom_jax.training.transfer import Factors

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
    config: Mapping[str, Any],
    specs: Specs,
    steps: int,
    groups: Groups | None = None,
    transfer: Mapping[Path, Factors] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Clipping, then AdamW or Muon, all skipped when a gradient is not finite.

    Args:
      config: learning_rate, schedule, decay_share, warmup_steps, optimizer, b1, b2, eps, mu_dtype,
        weight_decay, clip_norm.
      specs: specs of the trained weights; tells which are matrices (decayed) and which use Muon.
      steps: length of the run.
      groups: factors of the learning rate and weight decay of some weights. They do not change the
        optimiser's state. Clipping uses the norm of all gradients together.
      transfer: factors of the learning rate, weight decay and epsilon of weights of a model larger
        than the one that `config` was tuned on. Moments are those of gradients over the factor of
        epsilon.

    Returns:
      The transformation and its schedule.
    """
    groups, transfer = groups or Groups(), transfer or {}
    schedule = make_schedule(config, steps)
    if config["mu_dtype"] not in MOMENT_DTYPES:
        raise ValueError(
            f"mu_dtype={config['mu_dtype']!r} is not one of {', '.join(MOMENT_DTYPES)}"
        )
    numbers = {name: config[name] for name in ("b1", "b2", "eps", "mu_dtype")}

    decay, decayed = config["weight_decay"], map_specs(_is_matrix, specs)
    no_group, unchanged = Group(""), Factors()  # of weights without factors of their own

    def decay_of(path: Path) -> float:
        group, own = groups.of(path) or no_group, transfer.get(path, unchanged)
        return group.weight_decay * own.weight_decay

    def rate_of(path: Path) -> float:
        group, own = groups.of(path) or no_group, transfer.get(path, unchanged)
        return group.learning_rate * own.learning_rate

    def adamw() -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_adam(**numbers),
            _decay_by_weight(optax.add_decayed_weights(decay, decayed), decay_of),
            optax.scale_by_learning_rate(schedule),
        )

    def muon_with_decay() -> optax.GradientTransformation:
        shrink = optax.add_decayed_weights(lambda n: -decay * schedule(n), decayed)
        return optax.chain(muon(schedule, specs, **numbers), _decay_by_weight(shrink, decay_of))

    makers = {"adamw": adamw, "muon": muon_with_decay}
    if config["optimizer"] not in makers:
        raise ValueError(f"optimizer={config['optimizer']!r} is not one of {', '.join(makers)}")
    rule = _rate_by_weight(makers[config["optimizer"]](), rate_of)
    clip = optax.clip_by_global_norm(config["clip_norm"])
    # Adam of g / f with epsilon e is Adam of g with epsilon f · e.
    eps = optax.stateless(
        lambda grads, _: _scaled(grads, lambda path: 1 / transfer.get(path, unchanged).eps)
    )
    chain = optax.chain(clip, eps, rule) if transfer else optax.chain(clip, rule)
    return optax.apply_if_finite(chain, NEVER_GIVE_UP), schedule


def _scaled(tree: Any, factor_of: Callable[[Path], float]) -> Any:
    """A tree with the paths of all trained weights, each leaf times its factor."""

    def scale(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        factor = factor_of(tuple(key.key for key in path))
        return leaf if factor == 1 else leaf * factor

    return jax.tree.map_with_path(scale, tree)


def _decay_by_weight(
    decay: optax.GradientTransformation, factor_of: Callable[[Path], float]
) -> optax.GradientTransformation:
    """`decay`, which adds a multiple of the weights, times the factor of each weight."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return decay.update(updates, state, _scaled(params, factor_of))

    return optax.GradientTransformation(decay.init, update)


def _rate_by_weight(
    rule: optax.GradientTransformation, factor_of: Callable[[Path], float]
) -> optax.GradientTransformation:
    """`rule` with its updates, including decay, times the factor of each weight."""
    rule = optax.with_extra_args_support(rule)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        updates, state = rule.update(grads, state, params, **extra)
        return _scaled(updates, factor_of), state

    return optax.GradientTransformationExtraArgs(rule.init, update)
