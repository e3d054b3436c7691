"""The train step of a stage as a run would compile it, from shapes alone: no array is created."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.build import grid_unit, image_policy, stage_packing
from data_pipelines.loading.pictures import PictureBatch
from data_pipelines.loading.prompts import PromptBatch
from data_pipelines.sequences.packing import PackingConfig
from unicom_jax.core.batch import MaskIntervals, MixedBatch
from unicom_jax.core.gradients import COMPUTE
from unicom_jax.core.module import ParamSpec, Specs, iter_specs, map_specs
from unicom_jax.core.paths import as_path
from unicom_jax.families.build import autoencoder_path, build_space
from unicom_jax.models.autoencoder import flux_autoencoder
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace
from unicom_jax.parallel import sharding
from unicom_jax.parallel.memories import HOST
from unicom_jax.runs.autoencoder import adopt_autoencoder, facts_of
from unicom_jax.runs.stages import PARTS, settings_of, spec_of
from unicom_jax.training.assemble import make_trainer
from unicom_jax.training.state import TrainState
from unicom_jax.training.step import Stage, Trainer


@dataclasses.dataclass(frozen=True)
class StepProgram:
    """A stage's trainer and the shapes, types and shardings of its step's arguments.

    Attributes:
      frozen: weights of earlier stages.
      batch: the global batch, over all devices.
      tokens: slots in a step (encoder, codec: patches).
      images: the most images that a step's batch can hold.
    """

    trainer: Trainer
    state: TrainState
    frozen: Any
    frozen_specs: Specs
    batch: Any
    tokens: int
    images: int

    @property
    def stage(self) -> Stage:
        return self.trainer.stage

    def lower(self) -> jax.stages.Lowered:
        return self.trainer.train_step().lower(self.state, self.frozen, self.batch)


def make_program(config: ConfigDict, name: str, mesh: Mesh) -> StepProgram:
    """The step of stage `name` on a mesh, whose devices need not exist.

    Raises:
      ValueError: settings that a run would also refuse.
    """
    settings, spec = settings_of(config, name), spec_of(name)
    trainer = make_trainer(name, config, mesh, statistics_batches=lambda: iter(()))
    sharding.count_row_shards(mesh.shape, settings.batch_size, settings.accumulate)
    batch = abstract_batch(config, name)
    place = sharding.batch_sharding(mesh)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), batch)
    frozen_specs = _frozen_specs(config, name)
    frozen = {part: _placed(specs, mesh) for part, specs in frozen_specs.items()}
    state = trainer.abstract_state()
    if trainer.stage.prepare is not None:
        placed = jax.eval_shape(trainer.prepare_step(), state, frozen, placed)
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), placed
        )
    return StepProgram(
        trainer=trainer,
        state=state,
        frozen=frozen,
        frozen_specs=frozen_specs,
        batch=placed,
        tokens=spec.tokens_per_step(config, spec.name),
        images=settings.batch_size * settings.get("images_per_row", 1),
    )


def abstract_batch(config: Mapping[str, Any], name: str) -> Any:
    """Shapes and types of a stage's global batch, as its loader makes it from pictures."""
    return ABSTRACT[spec_of(name).loader](config, spec_of(name).name)


def _abstract_packed(config: Mapping[str, Any], name: str) -> MixedBatch:
    return abstract_rows(config, config[name]["batch_size"], stage_packing(config, name))


def _abstract_pictures(config: Mapping[str, Any], name: str) -> PictureBatch:
    rows, patch = config[name]["batch_size"], config["data"]["patch"]
    return PictureBatch(
        patches=_array(rows, most_patches(config), 3 * patch**2, dtype=np.uint8),
        grids=_array(rows, 2),
        tokens=_array(rows, config["encoder"]["text"]["max_length"]),
        lengths=_array(rows),
    )


def _abstract_prompts(config: Mapping[str, Any], name: str) -> PromptBatch:
    settings, patch = config[name], config["data"]["patch"]
    rows = settings["batch_size"]
    asked = settings["rewards"].get("answers", 0.0) > 0
    return PromptBatch(
        patches=_array(rows, most_patches(config), 3 * patch**2, dtype=np.uint8),
        grids=_array(rows, 2),
        captions=_array(rows, settings["max_tokens"]),
        questions=_array(rows, settings["question_tokens"] if asked else 0),
        answers=_array(rows, settings["answer_tokens"] if asked else 0),
        number=_array(rows),
    )


# By `StageSpec.loader`: (configuration, name of the stage's settings) -> batch.
ABSTRACT: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
    "rows": _abstract_packed,
    "pictures": _abstract_pictures,
    "captioned": _abstract_pictures,
    "prompts": _abstract_prompts,
}


def abstract_rows(config: Mapping[str, Any], rows: int, packing: PackingConfig) -> MixedBatch:
    """Shapes and types of rows of text and images."""
    slots, images, draws, _ = packing.room
    return MixedBatch(
        tokens=_array(rows, slots),
        positions=_array(rows, slots, 2),
        mask=MaskIntervals(*(_array(rows, slots) for _ in range(4))),
        roles=_array(rows, slots),
        image_index=_array(rows, slots),
        image_token=_array(rows, slots),
        targets=_array(rows, slots),
        target_weights=_array(rows, slots, dtype=np.float32),
        patches=_array(
            rows, images, most_patches(config), 3 * config["data"]["patch"] ** 2, dtype=np.uint8
        ),
        grids=_array(rows, images, 2),
        draws=_array(rows, draws),
        parts=_array(rows, slots),
    )


def most_patches(config: Mapping[str, Any]) -> int:
    """The most patches of a picture under the configuration's policy."""
    return image_policy(config).max_patches(config["data"]["patch"], grid_unit(config))


def _array(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _frozen_specs(config: ConfigDict, name: str) -> dict[str, Specs]:
    """The specs of what a stage reads and does not train, as `training.run` loads it."""
    spec = spec_of(name)
    specs = {
        key: subtree.of(PARTS[subtree.part].build(config).specs())
        for key, subtree in spec.reads(config).items()
    }
    if spec.autoencoder and isinstance(space := build_space(config), LatentSpace):
        specs[AUTOENCODER] = space.autoencoder.specs()
    return specs


def _placed(specs: Specs, mesh: Mesh) -> Any:
    def place(spec: ParamSpec) -> jax.ShapeDtypeStruct:
        where = sharding.param_sharding(spec, mesh)
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=where)

    return map_specs(place, specs)


def gradient_bytes(config: Mapping[str, Any]) -> int:
    """Bytes of one number of a weight gradient when devices exchange it."""
    compute = config["gradient_dtype"] == COMPUTE
    return jax.numpy.dtype(config["compute_dtype"]).itemsize if compute else 4


def local_bytes(tree: Any) -> int:
    """Bytes of a placed abstract tree on one device; arrays in host memory do not count."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST
    )


def weight_sizes(program: StepProgram, mesh: Mesh) -> frozenset[int]:
    """Numbers of elements by which a program's exchanges of weights are recognised.

    They are those of every weight, trained or frozen, and of one layer of it: whole, as a device
    holds it, and gathered over one kind of axis.
    """
    sizes: set[int] = set()
    for specs in (program.stage.module.specs(), program.frozen_specs):
        for _, spec in iter_specs(specs):
            placed = sharding.param_sharding(spec, mesh).spec
            cuts = {_devices(mesh, axes) for axes in placed} | {1}
            layers = spec.shape[0] if spec.axes and spec.axes[0] == "layers" else 1
            split_by = {1, *cuts, int(np.prod(list(cuts), dtype=int))}
            sizes |= {spec.size // cut // each for cut in split_by for each in (1, layers)}
    return frozenset(size for size in sizes if size > 1)


def _devices(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def assume_flux(config: ConfigDict) -> str:
    """Fills in what a run learns about its autoencoder at its start, if not yet filled in.

    Returns:
      What was assumed, or "". If the folder in the configuration is missing, FLUX's is assumed.
    """
    if not (path := autoencoder_path(config)) or config.codec.autoencoder.facts:
        return ""
    if as_path(path).is_dir():
        adopt_autoencoder(config, as_path(path), copy=False)
        return ""
    config.codec.autoencoder.facts = facts_of(config, flux_autoencoder())
    what = "planned with the sizes of FLUX.1's autoencoder"
    return f"codec.autoencoder.path={path} does not exist; {what}"
