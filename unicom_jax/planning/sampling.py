"""What `unicom sample` takes: its two programs compiled for one device that is not here.

Generation runs on one device, with all weights there as they were trained (fp32), whatever else the
topology has. The programs are those of `inference/engine.py`, for the settings `sample` of the
configuration and one request at a time:

    draw    read a prompt of words (with guidance also the empty one), flow steps, pixel decoder
    write   read a picture and a question, then token by token up to `max_tokens`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from data_pipelines.sequences.packing import PackingConfig
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.families.build import (
    build_codec,
    build_encoder,
    build_space,
    build_unified,
    usual_shift,
)
from unicom_jax.inference import engine
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.prompt import SLOT_BUCKET, round_up
from unicom_jax.inference.text import Sampling
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.plan.roofline import Part, Roofline, make_roofline
from unicom_jax.parallel.plan.topology import Topology, open_devices
from unicom_jax.parallel.plan.traffic import fabric_of
from unicom_jax.planning.plan import Compiled, compile_once, keep_text
from unicom_jax.planning.program import abstract_rows, local_bytes, most_patches

SAMPLE = "sample"  # beside the names of stages
WORDS = 64  # slots of a prompt, or of a question
STOPS = 3  # tokens that end a text
OUTSIDE = "the rest"


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """What a program takes on its device.

    Attributes:
      name: "draw" or "write".
      work: what it does, in words.
      weights, cache: bytes of all weights, and of keys and values.
      peak: bytes at the highest point; None where the compiler gave up before it knew.
      turns: {part: how often its loop turns}; 1 for what runs once.
      parts: {part: its loops}; empty where the compiler gave up.
    """

    name: str
    work: str
    topology: Topology
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
    """A program, lowered, and what is known of it beforehand."""

    work: str
    lowered: jax.stages.Lowered
    cache: int
    turns: Mapping[str, int]


def plan_sampling(
    config: ConfigDict, topology: Topology, keep: Path | None = None
) -> list[SamplePlan]:
    """Compiles both programs for the first device of `topology`.

    Args:
      keep: a folder for the text of the compiled programs.

    Raises:
      ValueError: settings that generation would refuse.
    """
    mesh = make_mesh("", open_devices(topology)[:1])
    place = SingleDeviceSharding(mesh.devices.flat[0])
    models = engine.Models(
        build_encoder(config).vision,
        build_codec(config),
        build_unified(config),
        build_space(config),
    )
    weights = _placed(_weights(models), place)
    plans = []
    for name, make in (("draw", _draw), ("write", _write)):
        request = make(config, models, weights, place)
        compiled = compile_once(request.lowered, f"{topology.name}, one device")
        keep_text(compiled, f"{SAMPLE}-{name}", keep)
        held = local_bytes(weights)
        # All weights lie there, also those that a program does not read.
        unread = max(held - compiled.arguments, 0.0) if compiled.text else 0.0
        plans.append(
            SamplePlan(
                name=name,
                work=request.work,
                topology=topology,
                weights=held,
                cache=request.cache,
                peak=compiled.peak and compiled.peak + unread,
                turns=request.turns,
                parts=_parts(compiled, fabric_of(topology, mesh, frozenset()), request.turns),
            )
        )
    return plans


def _weights(models: engine.Models) -> dict[str, Any]:
    """Shapes of what a `Generator` holds."""
    trees = {name: getattr(models, name).abstract() for name in ("vision", "codec", "unified")}
    if isinstance(models.space, LatentSpace):
        trees[AUTOENCODER] = models.space.autoencoder.abstract()
    return trees


def _placed(tree: Any, place: SingleDeviceSharding) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def _draw(
    config: ConfigDict, models: engine.Models, weights: Any, place: SingleDeviceSharding
) -> _Request:
    """One picture of the usual size behind a prompt without pictures."""
    settings, side, pool = config.sample, config.data.image_size, config.codec.pool
    drawing = Drawing(
        settings.steps,
        float(settings.guidance),
        settings.sampler,
        tuple(settings.guidance_interval),
        usual_shift(config, models.unified.images),
    )
    grid = side // config.data.patch
    tokens, rows = (grid // pool) ** 2, drawing.branches
    positions = np.zeros((rows, tokens, 2), np.int32)
    mask = MaskIntervals(*(np.zeros((rows, tokens), np.int32) for _ in range(4)))
    channels = models.codec.pixel_decoder.channels
    prompt = abstract_rows(config, rows, PackingConfig(WORDS, images=1))
    arrays = (
        prompt, positions, mask, np.zeros((1, 2), np.int32),
        np.zeros((1, tokens, models.codec.latent_dim), np.float32),
        np.zeros((1, grid**2, channels), np.float32),
    )  # fmt: skip
    seen = dataclasses.replace(models, space=models.space.of_grid(grid, grid))
    lowered = engine.paint.lower(
        seen, weights, *_placed(arrays, place),
        pool=pool, settings=drawing, codec_steps=config.codec.sample_steps,
    )  # fmt: skip
    branches = "both branches" if rows == 2 else "one branch"
    return _Request(
        f"{WORDS} slots of words, {side} x {side} pixels, {branches}",
        lowered,
        _cache(models, rows, WORDS + tokens),
        {
            engine.READING: 1,
            engine.DRAWING: drawing.steps,
            engine.PAINTING: config.codec.sample_steps,
        },
    )


def _write(
    config: ConfigDict, models: engine.Models, weights: Any, place: SingleDeviceSharding
) -> _Request:
    """A text behind one picture and a question."""
    seen = seen_slots(config.unified.understanding, most_patches(config), config.codec.pool)
    limit, slots = config.sample.max_tokens, round_up(seen + WORDS, SLOT_BUCKET)
    one = jax.ShapeDtypeStruct((1,), np.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    arrays = (
        abstract_rows(config, 1, PackingConfig(slots, images=1)), one, one,
        jax.ShapeDtypeStruct((STOPS,), np.int32), keys,
    )  # fmt: skip
    lowered = engine.write.lower(
        models, weights, *_placed(arrays, place), max_tokens=limit, sampling=Sampling()
    )
    return _Request(
        f"{slots} slots with a picture, {limit} tokens",
        lowered,
        _cache(models, 1, slots + limit),
        {engine.READING: 1, engine.WRITING: limit},
    )


def seen_slots(understanding: str, patches: int, pool: int) -> int:
    """Slots of a picture of so many patches that is looked at."""
    features = 0 if understanding == "latents" else patches
    latents = patches // pool**2 if understanding in ("latents", "sequence_concat") else 0
    return features + latents


def _cache(models: engine.Models, rows: int, slots: int) -> int:
    """Bytes of keys and values."""
    unified = models.unified
    cache = jax.eval_shape(
        lambda: unified.transformer.init_cache(rows, slots, unified.compute_dtype)
    )
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))


def _parts(compiled: Compiled, fabric: Any, turns: Mapping[str, int]) -> dict[str, Roofline]:
    """The loops of a program by the part they belong to."""
    if not compiled.text:
        return {}
    found: dict[str, list[Part]] = {name: [] for name in (*turns, OUTSIDE)}
    for part in make_roofline(count_costs(parse_program(compiled.text)), fabric).parts:
        scopes = part.name.split("/")
        found[next((name for name in turns if name in scopes), OUTSIDE)].append(part)
    return {name: Roofline(tuple(parts), ()) for name, parts in found.items()}
