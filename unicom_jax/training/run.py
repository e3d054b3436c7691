"""A run: tokenizer, then the stages of a configuration one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from data_pipelines import build as pipelines
from data_pipelines.loading.loader import Loader
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.config import ConfigError, to_json
from unicom_jax.config.check import check_settings
from unicom_jax.core.module import Params
from unicom_jax.families.build import build_codec, build_encoder
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.processes import ProcessError, ProcessGroup, Vote
from unicom_jax.parallel.sharding import (
    local_rows,
    param_shardings,
    place_batch,
)
from unicom_jax.runs.autoencoder import load_autoencoder
from unicom_jax.runs.checkpoint import is_import, restore_params, stage_steps
from unicom_jax.runs.configuration import data_start
from unicom_jax.runs.data import keep_data
from unicom_jax.runs.imported import check_stages, import_frozen_encoder
from unicom_jax.runs.initial import build_stage, describe_sources, initial_params, sources_of
from unicom_jax.runs.start import start_run
from unicom_jax.training.assemble import make_trainer, tokens_per_step
from unicom_jax.training.loop import Batches, LoopConfig, Observer, train
from unicom_jax.training.settings import copies_on_mesh
from unicom_jax.training.stages import unified
from unicom_jax.training.stopping import Stopped

ORDER = ("encoder", "codec", *unified.NAMES)

MakeObserver = Callable[[ConfigDict, Path, Mesh, Params], Observer]


def run_stages(
    config: ConfigDict,
    workdir: Path,
    console: Console,
    only: tuple[str, ...] | None = None,
    group: ProcessGroup | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
    make_observer: MakeObserver | None = None,
) -> None:
    """Trains `config.stages` (or those of them in `only`) in `workdir`; finished ones are skipped.

    Args:
      group: the processes of the run, all of which call this alike; by default this one alone.
      asked_to_stop: see `train`.
      make_observer: of what `train` observes in unified stages with `sample_every`, given the
        configuration, the workdir, the mesh and the stage's frozen weights.

    Raises:
      ConfigError: an unknown stage, a setting that cannot be, or an autoencoder that is missing or
        does not fit.
      CheckpointError: a stage that the wanted ones build on was not trained.
      ProcessError: another process is late or gone, or sees another workdir.
      Stopped: somebody asked to stop; what was done is saved.
      TokenizerError: the tokenizer is not the one that the run was started with.
    """
    group = group or ProcessGroup()
    stages = config.stages if only is None else only
    check_stages(config)
    check_settings(config, stages)
    with group.first_before_others("preparing the workdir"):
        tokenizer = _prepare(config, workdir, console, group)
    if len(set(group.gather("the configuration", to_json(config)))) > 1:
        raise ProcessError("the processes were given different configurations; start all alike")
    mesh = make_mesh(config.mesh)
    device, processes = jax.devices()[0], f" in {group.count} processes" * (group.count > 1)
    console.print(
        f"{workdir}: {', '.join(stages)} on {mesh.size} x {device.device_kind}{processes}"
    )
    for name in stages:
        if Vote(mesh).now(asked_to_stop()):
            raise Stopped(f"stopped before stage {name}; the same command goes on")
        _run_stage(
            name, config, tokenizer, workdir, mesh, console, group, asked_to_stop, make_observer
        )


def _prepare(config: ConfigDict, workdir: Path, console: Console, group: ProcessGroup) -> Tokenizer:
    """Process 0 writes into the workdir what is missing there, then the others read it; all fill
    it into their `config`."""
    if group.index and not (workdir / "config.json").is_file():
        raise ProcessError(
            f"process {group.index} does not see {workdir / 'config.json'}, which process 0 has "
            "written; give a --workdir on a file system that all processes share"
        )
    first = group.index == 0
    tokenizer = start_run(config, workdir, first=first)
    for change in keep_data(config, tokenizer, workdir, unified.NAMES, first=first):
        console.print(f"data: {change}", markup=False, soft_wrap=True)
    if config.encoder.init_from and "encoder" not in config.stages:
        if group.count > 1 and not stage_steps(workdir, "encoder"):
            raise ConfigError(
                "several processes do not import an encoder; before, in one process: unicom "
                f"import --workdir={workdir} --encoder={config.encoder.init_from}"
            )
        import_frozen_encoder(config, workdir, console)
    return tokenizer


def _run_stage(
    name: str,
    config: ConfigDict,
    tokenizer: Tokenizer,
    workdir: Path,
    mesh: Any,
    console: Console,
    group: ProcessGroup,
    asked_to_stop: Callable[[], bool],
    make_observer: MakeObserver | None,
) -> None:
    settings = config[name]
    share = local_rows(mesh, settings.batch_size, settings.accumulate)

    def batches(part: str) -> Batches:
        def stream(start: int) -> Loader:
            first = data_start(workdir, name, start, settings.batch_size)
            return pipelines.stage_loader(config, name, tokenizer, part, first, share)

        return stream

    def statistics_batches() -> Iterator[Any]:
        with closing(batches("train")(0)) as stream:
            for batch in itertools.islice(stream, config.codec.statistics_batches):
                yield place_batch(batch, mesh)

    trainer = make_trainer(name, config, mesh, statistics_batches)
    for line in copies_on_mesh(name, config, mesh.shape):
        console.print(f"! {line}", soft_wrap=True)
    frozen = _frozen_parts(name, config, workdir, mesh)
    if name in unified.NAMES and config.data.packed:
        unified.check_packed_features(config, name, frozen)
    observe = None
    if make_observer is not None and settings.get("sample_every"):
        observe = make_observer(config, workdir, mesh, frozen)
    loop = LoopConfig(
        **{
            field: settings[field] for field in LoopConfig.__dataclass_fields__ if field in settings
        },
        wandb_project=config.wandb_project,
    )
    train(
        trainer,
        frozen,
        batches("train"),
        batches("eval"),
        loop,
        workdir / name,
        console,
        init_params=_initial_params(name, config, workdir, mesh, console),
        tokens_per_step=tokens_per_step(name, config),
        group=group,
        asked_to_stop=asked_to_stop,
        observe=observe,
    )


def _restore(
    workdir: Path, stage: str, module: Any, mesh: Any, parts: tuple[str, ...] | None = None
) -> Params:
    shardings = param_shardings(module.specs(), mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        module.abstract(),
        shardings,
    )
    return restore_params(workdir, stage, abstract, parts)


def _frozen_parts(name: str, config: ConfigDict, workdir: Path, mesh: Any) -> Params:
    """Weights of the stages before this one and of the autoencoder, as far as it reads them."""
    frozen = {}
    if name != "encoder":
        encoder = _restore(workdir, "encoder", build_encoder(config), mesh, ("vision",))
        frozen["encoder"] = encoder["vision"]
    if name == "codec":
        frozen |= load_autoencoder(config, workdir, lambda specs: param_shardings(specs, mesh))
    if name in unified.NAMES:
        parts = ("compressor", "statistics")  # it draws latents, so what paints them stays on disk
        frozen["codec"] = _restore(workdir, "codec", build_codec(config), mesh, parts)
    return frozen


def _initial_params(
    name: str, config: ConfigDict, workdir: Path, mesh: Any, console: Console
) -> Params | None:
    """What a stage starts from: an import, the sub-stage before it, `init_from`; None: chance."""
    module = build_stage(config, name)
    if steps := stage_steps(workdir, name):
        if not is_import(workdir / name / "checkpoints", steps[-1]):
            return None  # it goes on
        console.print(f"{name}: starts from the weights that were imported")
        return _restore(workdir, name, module, mesh)
    earlier = unified.NAMES[: unified.NAMES.index(name)] if name in unified.NAMES else ()
    for stage in reversed(earlier):
        if stage_steps(workdir, stage):
            console.print(f"{name}: starts from the weights of {stage}")
            return _restore(workdir, stage, module, mesh)
    if not (sources := sources_of(config, name)):
        return None
    console.print(f"{name}: {describe_sources(sources)}", soft_wrap=True)
    return initial_params(
        module.specs(), sources, config.seed, lambda specs: param_shardings(specs, mesh)
    )
