"""A stage's plan: what its step costs, found by compiling it for hardware that is not present.

Without a compiler for the hardware, `planning/estimate.py` makes a plan of the same form.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from unicom_jax.core.module import iter_specs
from unicom_jax.models.transformer import ROW_ATTENTION
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.plan.roofline import Roofline, make_roofline
from unicom_jax.parallel.plan.topology import Topology, open_devices
from unicom_jax.parallel.plan.traffic import fabric_of
from unicom_jax.planning.packed import Visible, visible_pairs
from unicom_jax.planning.program import (
    StepProgram,
    gradient_bytes,
    local_bytes,
    make_program,
    weight_sizes,
)
from unicom_jax.planning.tiles import tile_warning
from unicom_jax.runs.stages import spec_of
from unicom_jax.training.flops import Shares, flops_by_shares
from unicom_jax.training.state import split

GIB = 2**30
ESTIMATED = "estimated, nothing was compiled"
# XLA's options for `quick`. A TPU program then differs in two ways: nothing stays in VMEM from one
# operation to the next, and the machine code of each operation is made with fewer passes.
LEAST_EFFORT = {"exec_time_optimization_effort": -1.0}


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What a step of a stage takes. Bytes and FLOPs are one device's, except the model's FLOPs.

    Attributes:
      mesh: sizes of the mesh's axes.
      parameters: {part: (weights, trained ones of them)}.
      held: {what: bytes stored on a device between steps}.
      peak: bytes at the step's highest point; None if the compiler gave up before it knew.
      parts: parts from which a batch is accumulated.
      visible: share of visible pairs of a row's slots; None if the stage has no packed rows.
      model_flops: FLOPs that the loss needs for the whole batch, as MFU counts them
        (`training/flops.py`), with logits at every slot.
      all_pairs_flops: the same with all pairs of a row, visible or not.
      computed_flops: FLOPs of the program on one device, remat and copies included. Kernels in
        packed rows count with the blocks that have visible pairs.
      computed_flops, roofline: None if the compiler gave up.
      how: "compiled", "compiled with the least effort" or ESTIMATED, with nothing compiled.
      seconds: compile time.
      unknown_loops: number of the program's loops whose length its text does not give.
      warnings: lines about the settings.
    """

    stage: str
    topology: Topology
    mesh: Mapping[str, int]
    parameters: Mapping[str, tuple[int, int]]
    rows: int
    parts: int
    tokens: int
    images: int
    steps: int
    held: Mapping[str, int]
    visible: Visible | None
    model_flops: float
    all_pairs_flops: float
    peak: float | None
    computed_flops: float | None
    roofline: Roofline | None
    how: str
    seconds: float = 0.0
    unknown_loops: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def estimated(self) -> bool:
        return self.how == ESTIMATED

    @property
    def fits(self) -> bool:
        return self.topology.holds(self.peak)

    @property
    def step_seconds(self) -> float | None:
        """The least time a step takes; None if no peaks are known."""
        seconds = self.roofline.overlapped if self.roofline else 0.0
        return seconds or None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs over the FLOPs that the devices could do in `step_seconds`."""
        return self._mfu(self.step_seconds)

    @property
    def mfu_in_turn(self) -> float | None:
        """The same if nothing overlaps."""
        return self._mfu(self.roofline.in_turn if self.step_seconds else None)

    def _mfu(self, seconds: float | None) -> float | None:
        if not seconds:
            return None
        peak = self.topology.accelerator.flops * self.topology.devices
        return self.model_flops / seconds / peak

    @property
    def mfu_by_all_pairs(self) -> tuple[float, float] | None:
        """`mfu` and `mfu_in_turn` as PaLM counts attention."""
        if not self.step_seconds:
            return None
        more = self.all_pairs_flops / self.model_flops
        return self.mfu * more, self.mfu_in_turn * more

    @property
    def days(self) -> float | None:
        """Days for all steps of the stage."""
        return self.step_seconds * self.steps / 86400 if self.step_seconds else None


def keep_text(compiled: Compiled, name: str, keep: Path | None) -> None:
    """Writes a compiled program's text to NAME.hlo in the folder `keep`, if there is one."""
    if keep and compiled.text:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"{name}.hlo").write_text(compiled.text, encoding="utf-8")


def plan_stage(
    config: ConfigDict,
    name: str,
    topology: Topology,
    keep: Path | None = None,
    quick: bool = False,
) -> StagePlan:
    """Compiles the train step of stage `name` for `topology`.

    Args:
      keep: a folder for the compiled program's text, NAME.hlo.
      quick: whether to compile with the least effort.

    Raises:
      ValueError: a mesh or batch that does not divide over the devices, or another setting that a
        run would refuse.
    """
    mesh = make_mesh(config.mesh, open_devices(topology))
    program = make_program(config, name, mesh)
    began = time.perf_counter()
    compiled = compile_once(program.lower(), str(topology), quick)
    seconds = time.perf_counter() - began
    keep_text(compiled, name, keep)
    facts = facts_of(config, name, topology, program)
    kernels = {ROW_ATTENTION: facts["visible"].blocks} if facts["visible"] else {}
    costs = count_costs(parse_program(compiled.text), kernels) if compiled.text else None
    roofline = None
    if costs is not None:
        roofline = make_roofline(costs, fabric_of(topology, mesh, weight_sizes(program, mesh)))
    needed = flops_by_shares(program.stage, program.frozen, program.batch)
    # A run also holds arrays that the step does not read.
    unread = max(sum(facts["held"].values()) - compiled.arguments, 0.0) if compiled.text else 0.0
    return StagePlan(
        **facts,
        model_flops=needed(shares_of(facts["visible"])),
        all_pairs_flops=needed(Shares()),
        peak=compiled.peak and compiled.peak + unread,
        computed_flops=costs.flops if costs else None,
        roofline=roofline,
        how=how_compiled(quick),
        seconds=seconds,
        unknown_loops=costs.unknown_loops if costs else 0,
    )


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A device's bytes at the highest point and of the arguments, and the program's text.

    If it does not fit, the peak is what the compiler reports, or None, and there is no text.
    """

    peak: float | None
    arguments: float
    text: str


def how_compiled(quick: bool) -> str:
    """For the title of a table."""
    return "compiled with the least effort" if quick else "compiled"


_COMPILED: dict[tuple[str, bool, str], Compiled] = {}


def compile_once(lowered: jax.stages.Lowered, where: str, quick: bool = False) -> Compiled:
    """Like `_compile`; stages that differ only in numbers (rates, lengths) share a program."""
    stripped = re.sub(r"dense<[^>]*>", "dense<>", lowered.as_text())
    key = (where, quick, hashlib.sha256(stripped.encode()).hexdigest())
    if key not in _COMPILED:
        _COMPILED[key] = _compile(lowered, quick)
    return _COMPILED[key]


def _compile(lowered: jax.stages.Lowered, quick: bool) -> Compiled:
    try:
        compiled = lowered.compile(compiler_options=LEAST_EFFORT if quick else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+)([KMGT]) of", str(error))
        scale = dict(zip("KMGT", (2**10, 2**20, 2**30, 2**40), strict=True))
        return Compiled(float(used[1]) * scale[used[2]] if used else None, 0.0, "")
    memory = compiled.memory_analysis()
    arguments = float(memory.argument_size_in_bytes)
    peak = float(memory.peak_memory_in_bytes)
    if peak < arguments:  # the CPU's peak leaves arguments out
        peak = arguments + memory.temp_size_in_bytes
    return Compiled(peak, arguments, compiled.as_text())


def shares_of(visible: Visible | None) -> Shares:
    """The shares that count. Logits are counted at every slot, as in the compiled program."""
    return Shares(visible=visible.share) if visible else Shares()


def facts_of(
    config: ConfigDict, name: str, topology: Topology, program: StepProgram
) -> dict[str, Any]:
    """What is known about a plan before anything is compiled or traced."""
    settings = config[name]
    trained, _ = split(program.stage.module.specs(), program.stage.freeze)
    specs, mesh = [spec for _, spec in iter_specs(trained)], program.trainer.mesh
    tiles = tile_warning(specs, mesh, gradient_bytes(config)) if topology.is_tpu else ""
    return {
        "warnings": tuple(filter(None, [tiles])),
        "stage": name,
        "topology": topology,
        "mesh": dict(program.trainer.mesh.shape),
        "parameters": count_parameters(program),
        "rows": settings.batch_size,
        "parts": settings.accumulate,
        "tokens": program.tokens,
        "images": program.images,
        "steps": settings.steps,
        "visible": visible_pairs(config, name) if spec_of(name).loader == "rows" else None,
        "held": {
            "weights": local_bytes(program.state.params),
            "moments": local_bytes(program.state.opt_state),
            "average": local_bytes(program.state.ema),
            "frozen parts": local_bytes(program.frozen),
            "batch": local_bytes(program.batch),
        },
    }


def count_parameters(program: StepProgram) -> dict[str, tuple[int, int]]:
    """{part: (weights, trained ones)}: the module's parts, then frozen ones of earlier stages."""
    stage = program.stage
    trained, _ = split(stage.module.specs(), stage.freeze)
    parts = {}
    for part, specs in stage.module.specs().items():
        learns = dict(iter_specs({part: trained[part]})) if part in trained else {}
        total = sum(spec.size for _, spec in iter_specs({part: specs}))
        parts[part] = (total, sum(spec.size for spec in learns.values()))
    for part, tree in program.frozen.items():
        size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
        parts[f"{part} (given)"] = (size, 0)
    return parts
