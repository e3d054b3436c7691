"""Searches meshes, remat and batches of a stage: estimates all, compiles a few.

An estimate takes seconds and a compilation minutes, so all settings are ranked by estimated time
per token (those that seem to fit come first), and only the first few are compiled.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

from ml_collections import ConfigDict

from unicom_jax.config import ConfigError
from unicom_jax.parallel.plan.topology import Topology, missing_compiler
from unicom_jax.planning.estimate import estimate_stage
from unicom_jax.planning.plan import StagePlan, plan_stage
from unicom_jax.runs.stages import PARTS, spec_of

Values = tuple[tuple[str, object], ...]  # (key of the configuration, value)

REMATS = ("none", "dots", "full")  # "offload" depends on links to the host
TENSOR = (1, 2, 4, 8)
COPIES, LEAST_SHARDS = (2, 4, 8), 8  # copies of all weights on a TPU slice; devices per copy
BATCH = (0.5, 1, 2)  # factors of the configuration's batch size
ACCUMULATE = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Values of configuration keys, and their plan."""

    values: Values
    plan: StagePlan

    @property
    def flags(self) -> str:
        return " ".join(f"--config.{key}={_written(value)}" for key, value in self.values)

    @property
    def seconds_a_token(self) -> float:
        return (self.plan.step_seconds or 0.0) / self.plan.tokens


def _written(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) and "," in value else str(value)


def remat_key(config: ConfigDict, stage: str) -> str:
    """The key that sets what the stage's largest stack keeps for its backward pass."""
    return PARTS[spec_of(stage).part].remat(config)


def changed(config: ConfigDict, values: Values) -> ConfigDict:
    """A copy of the configuration with other values of some keys."""
    config = config.copy_and_resolve_references()
    for key, value in values:
        *groups, last = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    return config


def grid(config: ConfigDict, stage: str, topology: Topology) -> Iterator[Values]:
    """All settings that are tried."""
    key = remat_key(config, stage)
    remats = (False, True) if isinstance(_get(config, key), bool) else REMATS
    rows = config[stage].batch_size
    batches = [int(rows * factor) for factor in BATCH if rows * factor >= 1]
    choices = _meshes(topology), remats, batches, ACCUMULATE
    for mesh, remat, batch, part in itertools.product(*choices):
        values = [("mesh", mesh), (key, remat), (f"{stage}.batch_size", batch)]
        yield (*values, (f"{stage}.accumulate", part))


def _get(config: ConfigDict, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def _meshes(topology: Topology) -> list[str]:
    """Weights over all of a slice, over a half, quarter or eighth of it (where shards may be whole
    tiles, `planning/tiles.py`), or over what a tensor axis leaves; for GPUs over all or a node."""
    slices = f"slice={topology.slices}," if topology.slices > 1 else ""
    lines = [f"{slices}fsdp=-1"]
    if topology.is_tpu:
        whole = topology.devices // topology.slices
        parts = (whole // copies for copies in COPIES if whole % copies == 0)
        lines += [f"{slices}data=-1,fsdp={part}" for part in parts if part >= LEAST_SHARDS]
    elif topology.accelerator and topology.shape[0] > 1:
        lines.append(f"data=-1,fsdp={topology.shape[1]}")
    lines += [
        f"{line},tensor={size}"
        for line in lines[:1]
        for size in TENSOR[1:]
        if topology.devices % (size * topology.slices) == 0
    ]
    return lines


def search(
    config: ConfigDict,
    stage: str,
    topology: Topology,
    compile_best: int,
    say: Callable[[str], None] = lambda text: None,
    settings: Iterable[Values] | None = None,
    quick: bool = False,
) -> list[Setting]:
    """Settings of a stage, the best first: those compiled, then the estimates.

    Args:
      compile_best: how many settings to compile; none are without a compiler.
      settings: settings to try; by default all of `grid`.
      quick: whether to compile with the least effort.
    """
    estimates = []
    for values in grid(config, stage, topology) if settings is None else settings:
        try:
            plan = estimate_stage(changed(config, values), stage, topology)
        except (ValueError, ConfigError):
            continue  # rows or heads do not divide over this mesh, or rows see each other
        estimates.append(Setting(values, plan))
    estimates.sort(key=_order)
    compile_best = 0 if missing_compiler(topology) else compile_best
    say(f"{stage}: {len(estimates)} settings estimated, {compile_best} to be compiled")
    done = []
    for setting in estimates[:compile_best]:
        plan = plan_stage(changed(config, setting.values), stage, topology, quick=quick)
        done.append(dataclasses.replace(setting, plan=plan))
        say(f"compiled in {plan.seconds:.0f} s: {setting.flags}")
    return [*sorted(done, key=_order), *estimates[compile_best:]]


def _order(setting: Setting) -> tuple[bool, float, float]:
    """Settings that fit come first, then the fastest; ties are broken by time without overlap."""
    plan = setting.plan
    in_turn = plan.roofline.in_turn / plan.tokens if plan.roofline else 0.0
    return not plan.fits, setting.seconds_a_token, in_turn


def nearest_fit(config: ConfigDict, plan: StagePlan) -> Setting | None:
    """The smallest change that should make a plan fit, by estimates scaled to the compiled peak.

    Tries remat first, then more and smaller parts of the batch, then other meshes.
    """
    stage, topology = plan.stage, plan.topology
    key = remat_key(config, stage)
    here = estimate_stage(config, stage, topology)
    scale = plan.peak / here.peak if plan.peak else 1.0
    full = True if isinstance(_get(config, key), bool) else "full"
    remat = () if _get(config, key) == full else ((key, full),)
    parts = [part for part in ACCUMULATE if part > config[stage].accumulate]
    steps = [remat] if remat else []
    steps += [(*remat, (f"{stage}.accumulate", part)) for part in parts]
    steps += [
        (("mesh", mesh), *remat, *((f"{stage}.accumulate", part),) * (part > 1))
        for part in (1, *parts)
        for mesh in _meshes(topology)
        if mesh != config.mesh
    ]
    for values in steps:
        try:
            estimate = estimate_stage(changed(config, values), stage, topology)
        except (ValueError, ConfigError):
            continue
        scaled = dataclasses.replace(estimate, peak=estimate.peak * scale)
        if scaled.fits:
            return Setting(values, scaled)
    return None
