"""The weights for inference: from a training directory, or randomly initialised."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipelines.sequences.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from unicom_jax.core import lora
from unicom_jax.core.module import (
    Module,
    Params,
    ParamSpec,
    Specs,
    fill_specs,
    iter_specs,
    jit_once,
)
from unicom_jax.families.build import VISION, family_of
from unicom_jax.families.family import Subtree
from unicom_jax.models.autoencoder import Autoencoder
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace
from unicom_jax.parallel.sharding import param_sharding, param_shardings
from unicom_jax.runs.autoencoder import load_autoencoder
from unicom_jax.runs.checkpoint import (
    chosen_step,
    has_adapters,
    has_average,
    read_config,
    restore_params,
)
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.stages import EYE, PARTS, UNIFIED, in_model
from unicom_jax.runs.trained import furthest, source_label
from unicom_jax.runs.workdir import stage_steps


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which weights of a run to read.

    Attributes:
      kind: "ema", "raw" (not averaged), "base" (a LoRA stage's weights without its adapters), or
        "": those for inference, averaged if EMA was on, with adapters merged.
      step: step of the unified model: a number, "best" (lowest held-out loss), or "": the newest.
    """

    kind: str = ""
    step: str = ""


IN_USE = Choice()


def cast_in_use(config: Mapping[str, Any]) -> re.Pattern:
    """Paths, starting with the tree, of weights that are cast to the compute dtype where they are
    used, so that inference may store them in it without changing any number.

    Norms, times, flow heads and the codec stay fp32.
    """
    own = family_of(config).cast
    return re.compile(
        rf"(unified/transformer/|{EYE}/{f'|unified/(?={own})' if own else ''}"
        r"|codec/pixel_decoder/transformer/(double|single|dual|joint|last)/(?!.*modulation))"
        r"(?!.*norm).*\b(kernel|bias|table)"
    )


# ---- which ------------------------------------------------------------------------------------


def trees_in_use(config: Mapping[str, Any], workdir: Path) -> dict[str, Subtree]:
    """Name of each tree of weights that inference uses -> where it comes from.

    They are those of the model's family, and `vision` for any run that has an encoder: evaluation
    uses it to measure pictures even if the model does not need it.
    """
    trees = in_model(config)
    if EYE not in trees and furthest(config, workdir, VISION.part):
        return {EYE: VISION, **trees}
    return trees


def stages_in_use(workdir: Path, step: str = "") -> dict[str, tuple[str, str]]:
    """The stage from which each of `trees_in_use` comes, and the step; "": the newest.

    Args:
      step: step of the unified model, as in `Choice`.
    """
    config = read_config(workdir)
    return {
        tree: (source_label(config, workdir, of.part), step if of == UNIFIED else "")
        for tree, of in trees_in_use(config, workdir).items()
    }


def modules_in_use(config: Mapping[str, Any], workdir: Path | None = None) -> dict[str, Module]:
    """The module of each tree of weights; also `autoencoder` for a codec that paints latents.

    Args:
      workdir: as for `trees_in_use`; None: only the family's trees.
    """
    trees = in_model(config) if workdir is None else trees_in_use(config, workdir)
    modules = {tree: of.module_of(PARTS[of.part].build(config)) for tree, of in trees.items()}
    modules = {**modules, "codec": family_of(config).codec(config)}
    autoencoder = autoencoder_of(config)
    return modules if autoencoder is None else {**modules, AUTOENCODER: autoencoder}


def autoencoder_of(config: Mapping[str, Any]) -> Autoencoder | None:
    """The given autoencoder in whose latents the codec paints; None if there is none."""
    space = family_of(config).space(config)
    return space.autoencoder if isinstance(space, LatentSpace) else None


# ---- the weights ------------------------------------------------------------------------------


def steps_in_use(workdir: Path, step: str = "") -> dict[str, tuple[str, int]]:
    """The stage and the number of its step for each part that has a checkpoint.

    Raises:
      CheckpointError: the unified model has no checkpoint of this `step`.
    """
    return {
        part: (stage, chosen_step(workdir, stage, wanted))
        for part, (stage, wanted) in stages_in_use(workdir, step).items()
        if stage_steps(workdir, stage)
    }


def load(
    workdir: Path, choice: Choice = IN_USE
) -> tuple[dict[str, Any], Tokenizer, dict[str, Params]]:
    """Configuration, tokenizer and weights of a directory; see `describe` and `restore`."""
    config, tokenizer = describe(workdir)
    return config, tokenizer, restore(workdir, config, choice)


def describe(workdir: Path) -> tuple[dict[str, Any], Tokenizer]:
    """Configuration and tokenizer of a directory; no weights are read.

    Raises:
      CheckpointError: there is no run, or one of another version.
      TokenizerError: the tokenizer is missing, damaged or not the one used in training.
    """
    config = read_config(workdir)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    if fingerprint := config["data"].get("tokenizer_fingerprint"):
        check_tokenizer(tokenizer, fingerprint, str(workdir))
    try:
        modules_in_use(config)
    except KeyError as error:
        raise CheckpointError(
            f"{workdir / 'config.json'} lacks the key {error}, so another version of "
            "unicom_jax wrote it; use that version, or train again"
        ) from error
    return config, tokenizer


def restore(
    workdir: Path,
    config: Mapping[str, Any],
    choice: Choice = IN_USE,
    *,
    on_host: bool = False,
    only: Sequence[str] = (),
    keys: Collection[str] = (),
    keep_adapters: bool = False,
    mesh: Mesh | None = None,
    for_use: bool = False,
) -> dict[str, Params]:
    """The weights of `trees_in_use`; also `autoencoder` for a codec that paints latents.

    Args:
      mesh: mesh into whose shards the weights are read directly; None: the first device.
      for_use: use the dtypes of inference, see `abstract_weights`.
      on_host: return NumPy arrays, see `restore_params`.
      only: path of the only part to read, e.g. ("unified", "transformer"); (): all.
      keys: of that part, if it is a whole tree, the only top-level keys to read; (): all.
      keep_adapters: return the adapters of a LoRA stage with the weights, not merged.

    Raises:
      CheckpointError: there is no checkpoint, a damaged one, or none that `choice` asks for.
      ConfigError: the run's autoencoder, if it has one, is missing or damaged.
    """
    _check_kind(workdir, choice)
    merged = lora.base_weights if choice.kind == "base" else lora.merge
    options = {
        "raw": choice.kind == "raw",
        "on_host": on_host,
        "adapters": dict if keep_adapters else merged,
    }
    params: dict[str, Params] = {}
    trees = trees_in_use(config, workdir)
    for tree, (stage, step) in stages_in_use(workdir, choice.step).items():
        if only and only[0] != tree:
            continue
        of = trees[tree]
        abstract = _abstract_part(tree, of, config, for_use, mesh)
        parts = of.read(abstract) or only[1:2] or keys or None
        params[tree] = of.of(
            restore_params(workdir, stage, abstract, parts=parts, step=step, **options)
        )
    if (not only or only[0] == AUTOENCODER) and autoencoder_of(config) is not None:
        places = mesh and (lambda specs: param_shardings(specs, mesh))
        params |= load_autoencoder(config, workdir, places)
    return params


def _check_kind(workdir: Path, choice: Choice) -> None:
    """Raises CheckpointError if no part has averages, or adapters, that `choice` is about."""
    match choice.kind:
        case "ema":
            has, lacks, cure = has_average, "holds no averaged weights", "train with ema_decay"
        case "base":
            has, lacks, cure = has_adapters, "has no LoRA adapters", "train a stage with lora.rank"
        case _:
            return
    if not any(has(workdir, *at) for at in steps_in_use(workdir, choice.step).values()):
        raise CheckpointError(f"{workdir} {lacks}; leave --weights out, or {cure}")


def _abstract_part(
    tree: str, of: Subtree, config: Mapping[str, Any], for_use: bool, mesh: Mesh | None
) -> Params:
    """`abstract_weights` of the whole part to which a tree of inference belongs."""
    name = "" if isinstance(of.keys, str) else tree  # a key already starts its paths
    return abstract_weights(PARTS[of.part].build(config), name, config if for_use else None, mesh)


def abstract_weights(
    module: Module,
    name: str,
    config: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Params:
    """Shapes, types and shardings of a module's weights.

    Args:
      name: name of the tree, with which the paths of `cast_in_use` start.
      config: configuration of a model for inference, whose compute dtype the weights of
        `cast_in_use` get; None: all dtypes are those of training.
    """
    cast = cast_in_use(config) if config else None

    def leaf(path: tuple[str, ...], spec: ParamSpec) -> jax.ShapeDtypeStruct:
        dtype = spec.dtype
        if cast and cast.fullmatch("/".join((name, *path) if name else path)):
            dtype = jnp.dtype(config["compute_dtype"])
        return jax.ShapeDtypeStruct(spec.shape, dtype, sharding=mesh and param_sharding(spec, mesh))

    specs: Specs = module.specs()
    return fill_specs(specs, {path: leaf(path, spec) for path, spec in iter_specs(specs)})


def untrained(
    config: Mapping[str, Any], seed: int, mesh: Mesh | None = None, only: Collection[str] = ()
) -> dict[str, Params]:
    """Random weights of the modules of `config`, and of a given autoencoder, sharded over `mesh`.

    They have the dtypes of a trained model in inference, so both use the same memory and programs.

    Args:
      only: the trees to make; (): all.
    """

    def fresh(module: Module, tree: str, key: jax.Array) -> Params:
        abstract = abstract_weights(module, tree, config, mesh)

        def init(key: jax.Array) -> Params:
            return jax.tree.map(lambda x, kind: x.astype(kind.dtype), module.init(key), abstract)

        places = jax.tree.map(lambda kind: kind.sharding, abstract)
        return jit_once(init, out_shardings=places)(key)

    modules, own = modules_in_use(config), in_model(config)
    keys = dict(zip(own, jax.random.split(jax.random.key(seed), len(own)), strict=True))
    keys[AUTOENCODER] = jax.random.fold_in(keys["codec"], 1)
    wanted = [tree for tree in modules if tree in only or not only]
    return {tree: fresh(modules[tree], tree, keys[tree]) for tree in wanted}
