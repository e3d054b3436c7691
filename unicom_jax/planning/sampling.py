"""What `unicom sample` takes: its programs compiled for one device that is not present.

One device holds all weights, in the dtypes that inference uses, however many the topology has. The
programs are those of `inference/engine.py`, for the settings `sample` of the configuration and one
request at a time:

    draw    read a prompt of words (with guidance also the empty one), flow steps, pixel decoder
    write   read a picture and a question, then token by token up to `max_tokens`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from data_pipelines.build import grid_unit
from data_pipelines.sequences.packing import PackingConfig
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.inference import engine
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.prompt import bucket
from unicom_jax.inference.text import Sampling, Tail, begin_writing
from unicom_jax.models.transformer import KVCache
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.plan.roofline import Part, Roofline, make_roofline
from unicom_jax.parallel.plan.topology import Topology, open_devices
from unicom_jax.parallel.plan.traffic import fabric_of
from unicom_jax.planning.plan import Compiled, compile_once, how_compiled, keep_text
from unicom_jax.planning.program import abstract_rows, local_bytes, most_patches
from unicom_jax.runs.weights import abstract_weights, modules_in_use

SAMPLE = "sample"  # used like the name of a stage
WORDS = 64  # slots of a prompt or a question
STOPS = 3  # number of tokens that end a text
OUTSIDE = "the rest"


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """What a program takes on its device.

    Attributes:
      name: "draw" or "write".
      work: what it does, in words.
      how: how it was compiled, as in `StagePlan`.
      weights, cache: bytes of all weights, and of keys and values.
      peak: bytes at the highest point; None if the compiler gave up before it knew.
      turns: {part: iterations of its loop}; 1 for what runs once.
      parts: {part: its loops}; empty if the compiler gave up.
    """

    name: str
    work: str
    topology: Topology
    how: str
    weights: int
    cache: int
    peak: float | None
    turns: Mapping[str, int]
    parts: Mapping[str, Roofline]

    @property
    def fits(self) -> bool:
        return self.topology.holds(self.peak)


@dataclasses.dataclass(frozen=True)
class _Request:
    """A request's lowered programs, in order, and what is known about them beforehand."""

    work: str
    lowered: Mapping[str, jax.stages.Lowered]
    cache: int
    turns: Mapping[str, int]


def plan_sampling(
    config: ConfigDict, topology: Topology, keep: Path | None = None, quick: bool = False
) -> list[SamplePlan]:
    """Compiles the programs of both requests for the first device of `topology`.

    Args:
      keep: a folder for the text of the compiled programs.
      quick: whether to compile with the least effort.

    Raises:
      ValueError: settings that generation would refuse.
    """
    mesh = make_mesh("", open_devices(topology)[:1])
    place = SingleDeviceSharding(mesh.devices.flat[0])
    models = engine.Models.of(config)
    weights = _placed(_weights(config), place)
    held, fabric = local_bytes(weights), fabric_of(topology, mesh, frozenset())
    plans = []
    for name, make in (("draw", _draw), ("write", _write)):
        request = make(config, models, weights, place)
        programs = {}
        for part, lowered in request.lowered.items():
            programs[part] = compile_once(lowered, f"{topology.name}, one device", quick)
            keep_text(programs[part], f"{SAMPLE}-{name}-{part}", keep)
        plans.append(
            SamplePlan(
                name=name,
                work=request.work,
                topology=topology,
                how=how_compiled(quick),
                weights=held,
                cache=request.cache,
                peak=_peak(list(programs.values()), held),
                turns=request.turns,
                parts=_all_parts(list(programs.values()), fabric, request.turns),
            )
        )
    return plans


def _peak(programs: Sequence[Compiled], held: int) -> float | None:
    """Bytes at the highest point of programs that run one after the other.

    All weights are in memory, even those that a program does not read.
    """
    if any(program.peak is None for program in programs):
        return None
    return max(
        program.peak + (max(held - program.arguments, 0.0) if program.text else 0.0)
        for program in programs
    )


def _weights(config: ConfigDict) -> dict[str, Any]:
    """Shapes and types of the weights that a `Generator` holds."""
    return {
        name: abstract_weights(module, name, config)
        for name, module in modules_in_use(config).items()
    }


def _placed(tree: Any, place: SingleDeviceSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def _draw(
    config: ConfigDict, models: engine.Models, weights: Any, place: SingleDeviceSharding
) -> _Request:
    """One picture of the usual size after a prompt without pictures."""
    side = config.data.image_size
    names = ("steps", "guidance", "guidance_interval", "sampler", "grid")
    drawing = Drawing(**{name: config.sample[name] for name in names})
    grid = side // config.data.patch
    rows, tokens = len(drawing.branches), (grid // grid_unit(config)) ** 2
    positions = np.zeros((rows, tokens, 2), np.int32)
    mask = MaskIntervals(*(np.zeros((rows, tokens), np.int32) for _ in range(4)))
    slots = bucket(WORDS)
    packing = PackingConfig(slots, images=1)
    prompt = abstract_rows(config, rows, packing).replace(patches=None)
    cache, start = _cache(models, rows, slots + tokens), np.zeros((), np.int32)
    latents = np.zeros((1, *models.unified.images.shape_of(tokens)), np.float32)
    channels, grids = models.codec.noise_channels, np.zeros((1, 2), np.int32)
    noise = np.zeros((1, grid**2, channels), np.float32) if channels else None
    steps = config.codec.sample_steps if channels else 1
    painting = models.on(models.canvas.of_grid(grid, grid))

    def placed(*arrays: Any) -> Any:
        return _placed(arrays, place)

    lowered = {
        engine.READING: engine.read.lower(
            models, weights, *placed(prompt, None, np.zeros(rows, np.int32), cache, start)
        ),
        engine.DRAWING: engine.draw.lower(
            models, weights,
            *placed(cache, positions, mask, grids, latents, start, drawing.numbers),
            plan=drawing.plan,
        ),
        engine.PAINTING: engine.paint.lower(
            painting, weights, *placed(latents, grids, noise), steps=steps
        ),
    }  # fmt: skip
    branches = "both branches" if rows == 2 else "one branch"
    return _Request(
        f"{slots} slots of words, {side} x {side} pixels, {branches}",
        lowered,
        _bytes(cache),
        {
            engine.READING: 1,
            engine.DRAWING: drawing.steps,
            engine.PAINTING: steps,
        },
    )


def _write(
    config: ConfigDict, models: engine.Models, weights: Any, place: SingleDeviceSharding
) -> _Request:
    """A text after one picture and a question."""
    fold = config.unified.fold
    seen = seen_slots(config.unified.understanding, most_patches(config), config.codec.pool, fold)
    limit, slots = config.sample.max_tokens, bucket(seen + WORDS)
    prompt = abstract_rows(config, 1, PackingConfig(slots, images=1))
    room = bucket(slots + limit) - slots
    cache, one = _cache(models, 1, slots + room), np.zeros(1, np.int32)
    scalar, hidden = (
        one[0],
        jax.ShapeDtypeStruct((1, models.unified.transformer.width), models.unified.compute_dtype),
    )
    writing = jax.eval_shape(lambda x, cache: begin_writing(x, cache, room), hidden, cache)
    tail = Tail(one, one, scalar, one, np.uint32(0), np.zeros(STOPS, np.int32))
    reading = prompt.replace(patches=None), prompt.patches, one, cache, scalar
    arrays = writing, tail, scalar, Sampling().numbers
    lowered = {
        engine.READING: engine.read.lower(models, weights, *_placed(reading, place)),
        engine.WRITING: engine.write.lower(
            models, weights, *_placed(arrays, place), mode=Sampling().mode
        ),
    }
    return _Request(
        f"{slots} slots with a picture, {limit} tokens",
        lowered,
        _bytes(cache),
        {engine.READING: 1, engine.WRITING: limit},
    )


def seen_slots(understanding: str, patches: int, pool: int, fold: int = 1) -> int:
    """Slots of a picture that is read and has `patches` patches."""
    features = 0 if understanding == "latents" else patches // fold**2
    of_latents = understanding in ("latents", "sequence_concat")
    latents = patches // (pool * fold) ** 2 if of_latents else 0
    return features + latents


def _cache(models: engine.Models, rows: int, slots: int) -> KVCache:
    """Shapes of keys and values."""
    return jax.eval_shape(lambda: models.new_cache(rows, slots))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _repeated(part: Part, turns: int) -> Part:
    seconds = tuple(turns * each for each in part.seconds)
    return dataclasses.replace(part, times=turns * part.times, seconds=seconds)


def _all_parts(
    programs: Sequence[Compiled], fabric: Any, turns: Mapping[str, int]
) -> dict[str, Roofline]:
    """The loops of all programs, by part."""
    if not all(program.text for program in programs):
        return {}
    found: dict[str, list[Part]] = {name: [] for name in (*turns, OUTSIDE)}
    for program in programs:
        for part in make_roofline(count_costs(parse_program(program.text)), fabric).parts:
            scopes = part.name.split("/")
            name = next((name for name in turns if name in scopes), OUTSIDE)
            # The length of a text is an argument: the program does not state its iterations.
            found[name].append(_repeated(part, turns[name]) if name == engine.WRITING else part)
    return {name: Roofline(tuple(parts), ()) for name, parts in found.items()}
