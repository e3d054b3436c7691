"""The compiled programs behind `Generator`, one for each job:

    read      prefixes into a key-value cache                    reading
    write     continues them, token by token                     writing
    draw      latents of pictures after them, step by step       drawing
    paint     latents to pixels                                  painting
    encode    pixels to latents; `pooled_features`: one vector per picture

They are functions of (models, params, arrays) with the models static, so two generators of the same
configuration (a trained model and its untrained baseline) share every compiled program. Numbers
such as temperature and guidance are arrays too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, UInt8

from unicom_jax.core.activations import ROWS, TENSOR, fitting, on_mesh
from unicom_jax.core.batch import MaskIntervals, MixedBatch
from unicom_jax.core.module import Params
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import build_encoder, build_unified, family_of
from unicom_jax.families.family import Family
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.inference.drawing import DrawingNumbers, Plan, draw_latents
from unicom_jax.inference.text import SamplingNumbers, Tail, Writing, generate
from unicom_jax.models.latent_codec import LatentCodec
from unicom_jax.models.paint_space import PaintSpace
from unicom_jax.models.transformer import KVCache
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.parallel.sharding import place_copies, replicated

# The trees of `runs.weights.trees_in_use`, plus `autoencoder` for a LatentSpace.
Weights = Mapping[str, Params]

# The scopes of the programs, by which `planning/sampling.py` and profiles identify them.
READING, WRITING, DRAWING, PAINTING = "reading", "writing", "drawing", "painting"


@dataclasses.dataclass(frozen=True)
class Models:
    """The modules of a configuration, and the mesh they run on; None: one device.

    Attributes:
      vision: the encoder's image tower, used by the codec or the model, or only to measure
        pictures; whether it has weights depends on the run.
      space: the space in which the codec's tokens are painted.
    """

    vision: VisionEncoder
    codec: LatentCodec
    unified: UnifiedModel
    space: PaintSpace
    family: Family
    mesh: Mesh | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], mesh: Mesh | None = None) -> Models:
        family = family_of(config)
        return cls(
            vision=build_encoder(config).vision,
            codec=family.codec(config),
            unified=build_unified(config),
            space=family.space(config),
            family=family,
            mesh=None if mesh is None or mesh.size == 1 else mesh,
        )

    @property
    def canvas(self) -> PaintSpace:
        """The space of whole pictures, whether inside the codec or after it."""
        return self.codec.canvas or self.space

    def on(self, canvas: PaintSpace) -> Models:
        """The same models for pictures on another `canvas`."""
        if self.codec.canvas is None:
            return dataclasses.replace(self, space=canvas)
        return dataclasses.replace(self, codec=self.codec.on(canvas))

    @property
    def row_devices(self) -> int:
        """The number of devices, or groups of them, over which the rows of a batch are divided."""
        return 1 if self.mesh is None else int(np.prod([self.mesh.shape[axis] for axis in ROWS]))

    def place(self, arrays: Any) -> Any:
        """Places host arrays, equal on every process, with their rows sharded over the mesh.

        Scalars and arrays whose rows do not divide evenly are copied to every device.
        """
        if self.mesh is None:
            return arrays

        def put(x: Any) -> jax.Array:
            rows = fitting(ROWS, np.shape(x)[0], self.mesh) if np.ndim(x) else ()
            return place_copies(x, NamedSharding(self.mesh, PartitionSpec(rows)))

        return jax.tree.map(put, arrays)

    def new_cache(self, rows: int, slots: int) -> KVCache:
        """An empty cache; rows and key heads are sharded over the mesh if they divide evenly."""
        if self.mesh is None:
            return _empty_cache(self, rows, slots)
        heads = fitting(TENSOR, self.unified.transformer.kv_heads, self.mesh)
        spec = PartitionSpec(None, fitting(ROWS, rows, self.mesh), None, heads)
        place = NamedSharding(self.mesh, spec)
        make = jax.jit(_empty_cache, static_argnums=(0, 1, 2), out_shardings=place)
        return make(self, rows, slots)

    def at_hand(self, x: jax.Array) -> jax.Array:
        """x replicated on every device, so that every process can fetch it."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, replicated(self.mesh))


def _empty_cache(models: Models, rows: int, slots: int) -> KVCache:
    return models.unified.init_cache(rows, slots)


def program(
    scope: str, static: tuple[str, ...] = (), donate: tuple[str, ...] = ()
) -> Callable[[Callable], Callable]:
    """Compiles a function of (models, params, ...) once for each shape and static argument."""

    def make(function: Callable) -> Callable:
        @wraps(function)
        def traced(models: Models, *args: Any, **kwargs: Any) -> Any:
            mesh = contextlib.nullcontext() if models.mesh is None else on_mesh(models.mesh)
            with mesh, jax.named_scope(scope):
                return function(models, *args, **kwargs)

        return jax.jit(traced, static_argnames=("models", *static), donate_argnames=donate)

    return make


def look(
    models: Models, params: Weights, patches: UInt8[Array, "B N C"], grids: Int[Array, "B 2"]
) -> Float[Array, "B N F"]:
    """The encoder's features of patches, in the model's compute dtype."""
    pixels = to_unit(patches).astype(models.unified.compute_dtype)
    return models.vision(params["vision"], pixels, grids)


@program(READING, donate=("cache",))
def read(
    models: Models,
    params: Weights,
    batch: MixedBatch,
    patches: UInt8[Array, "R M N C"] | None,
    last: Int[Array, " B"],
    cache: KVCache,
    start: Int[Array, ""],
) -> tuple[Float[Array, "B W"], KVCache]:
    """Reads rows into the cache's slots from `start` on.

    Args:
      batch: without patches. Its mask is in cache slots.
      patches: those of the pictures of R requests, of B / R rows each; None: there are none, and
        nothing is encoded.
      last: the slot in each row of the batch whose hidden state is returned.

    Returns:
      These hidden states, and the new cache; the given cache may no longer be used.
    """
    prepared = None if patches is None else _prepared(models, params, batch, patches)
    hidden, cache = models.unified.prefill(params["unified"], batch, prepared, cache, start)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], cache


def _prepared(models: Models, params: Weights, batch: MixedBatch, patches: jax.Array) -> Any:
    """The frozen models' outputs for all rows' pictures; those of a request are encoded once."""
    branches = batch.tokens.shape[0] // patches.shape[0]
    requests = jax.tree.map(lambda x: x[::branches], batch).replace(patches=patches)
    prepared = models.unified.images.prepare(models.family.frozen_of(params), requests)
    return jax.tree.map(lambda x: x.repeat(branches, axis=0), prepared)


@program(WRITING, static=("mode",), donate=("writing",))
def write(
    models: Models,
    params: Weights,
    writing: Writing,
    tail: Tail,
    until: Int[Array, ""],
    numbers: SamplingNumbers,
    *,
    mode: str,
) -> Writing:
    """Continues prefixes in the cache; arguments as for `inference.text.generate`."""
    written = generate(models.unified, params["unified"], writing, tail, until, numbers, mode)
    return written._replace(
        tokens=models.at_hand(written.tokens), done=models.at_hand(written.done)
    )


@program(DRAWING, static=("plan",))
def draw(
    models: Models,
    params: Weights,
    cache: KVCache,
    positions: Int[Array, "B s 2"],
    mask: MaskIntervals,
    grids: Int[Array, "R 2"],
    noise: Float[Array, "R n d"],
    start: Int[Array, ""],
    numbers: DrawingNumbers,
    source: Float[Array, "R n d"] | None = None,
    *,
    plan: Plan,
) -> Float[Array, "R n d"]:
    """Draws pictures after prefixes in the cache; arguments: `inference.drawing.draw_latents`."""
    return draw_latents(
        models.unified, params["unified"], cache, positions, mask, grids, noise, start, numbers,
        plan, source,
    )  # fmt: skip


@program(PAINTING, static=("steps",))
def paint(
    models: Models,
    params: Weights,
    latents: Float[Array, "R n d"],
    grids: Int[Array, "R 2"],
    noise: Float[Array, "R N channels"] | None,
    *,
    steps: int,
) -> Float32[Array, "R N C"]:
    """Patches in [-1, 1] from latents.

    Args:
      grids: rows and columns of patches.
      noise, steps: for a codec that paints by a flow; others take None and 1.
    """
    tokens = models.codec.decode(params["codec"], latents, grids, noise, steps)
    return models.at_hand(models.space.decode(params, tokens, grids))


@program("encoding")
def encode(
    models: Models, params: Weights, patches: UInt8[Array, "B N C"], grids: Int[Array, "B 2"]
) -> Float32[Array, "B n d"]:
    """Normalised latents of patches."""
    of_features = models.codec.reads == "features"
    seen = look(models, params, patches, grids) if of_features else to_unit(patches)
    return models.codec.encode(params["codec"], seen, grids)


@program("encoding")
def pooled_features(
    models: Models, params: Weights, patches: UInt8[Array, "B N C"], grids: Int[Array, "B 2"]
) -> Float[Array, "B F"]:
    """One vector per picture, by the encoder's attention pooling."""
    features = look(models, params, patches, grids)
    return models.at_hand(models.vision.pool(params["vision"], features, grids))
