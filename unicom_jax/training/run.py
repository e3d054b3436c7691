"""A run: tokenizer, then the stages of a configuration one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from data_pipelines.loading.loader import Loader
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.configured import narrow, part_weights
from unicom_jax.config import ConfigError, to_json
from unicom_jax.config.check import check_settings
from unicom_jax.core.module import Params
from unicom_jax.families.family import Subtree
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.processes import ProcessError, ProcessGroup, Vote
from unicom_jax.parallel.sharding import (
    local_rows,
    param_shardings,
    place_batch,
)
from unicom_jax.runs import loading
from unicom_jax.runs.autoencoder import load_autoencoder
from unicom_jax.runs.checkpoint import is_import, restore_params, stored_keys
from unicom_jax.runs.configuration import data_start
from unicom_jax.runs.data import keep_data
from unicom_jax.runs.imported import (
    check_stages,
    import_frozen_parts,
    keep_starts,
    parts_to_import,
)
from unicom_jax.runs.initial import initial_params
from unicom_jax.runs.released import (
    Source,
    build_stage,
    describe_sources,
    given_folders,
    sources_of,
)
from unicom_jax.runs.stages import PARTS, START, Occurrence, seed_of, select
from unicom_jax.runs.start import start_run
from unicom_jax.runs.trained import check_order, furthest, source_label, starts_from
from unicom_jax.runs.workdir import stage_steps
from unicom_jax.training.assemble import make_trainer
from unicom_jax.training.held_out import Batches
from unicom_jax.training.loop import LoopConfig, Observer, train
from unicom_jax.training.rollouts import both, rollout_observer
from unicom_jax.training.settings import copies_on_mesh
from unicom_jax.training.stages import unified
from unicom_jax.training.step import Trainer
from unicom_jax.training.stopping import Stopped

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
    """Trains `config.stages` (or those with labels in `only`) in `workdir`; finished stages are
    skipped.

    Args:
      group: the processes of the run, all of which call this alike; by default this one alone.
      asked_to_stop: see `train`.
      make_observer: makes the observer of `train` for stages with `sample_every`, from the
        configuration, the workdir, the mesh and the stage's frozen weights.

    Raises:
      ConfigError: an unknown stage, an impossible setting, or an autoencoder that is missing or
        does not fit.
      CheckpointError: a stage on which the requested ones build was not trained.
      ProcessError: another process is late or gone, or sees another workdir.
      Stopped: a stop was requested; the work so far is saved.
      TokenizerError: the tokenizer is not the one that the run was started with.
    """
    group = group or ProcessGroup()
    stages = select(config, only)
    check_stages(config)
    check_settings(config, dict.fromkeys(stage.name for stage in stages))
    mesh = make_mesh(config.mesh)
    trainers: list[Trainer] = []

    def make_trainers(tokenizer: Tokenizer) -> None:
        """Makes all before the first stage trains, so mistakes in later stages cost no time."""
        trainers.extend(_trainer(stage, config, tokenizer, mesh, workdir) for stage in stages)

    with group.first_before_others("preparing the workdir"):
        tokenizer = _prepare(config, workdir, console, group, make_trainers)
    if len(set(group.gather("the configuration", to_json(config)))) > 1:
        raise ProcessError(
            "the processes were given different configurations; start all with the same command"
        )
    device, processes = jax.devices()[0], f" in {group.count} processes" * (group.count > 1)
    console.print(
        f"{workdir}: {', '.join(stage.label for stage in stages)} on {mesh.size} x "
        f"{device.device_kind}{processes}"
    )
    check_order(config, workdir, stages)
    for stage, trainer in zip(stages, trainers, strict=True):
        if Vote(mesh).now(asked_to_stop()):
            raise Stopped(f"stopped before stage {stage.label}; run the same command to resume")
        _run_stage(
            stage,
            trainer,
            config,
            tokenizer,
            workdir,
            mesh,
            console,
            group,
            asked_to_stop,
            make_observer,
        )


def _prepare(
    config: ConfigDict,
    workdir: Path,
    console: Console,
    group: ProcessGroup,
    check: Callable[[Tokenizer], None],
) -> Tokenizer:
    """Process 0 writes what the workdir lacks, then the others read it; all complete their `config`
    from it."""
    if group.index and not (workdir / "config.json").is_file():
        raise ProcessError(
            f"process {group.index} does not see {workdir / 'config.json'}, which process 0 has "
            "written; give a --workdir on a file system that all processes share"
        )
    first = group.index == 0
    tokenizer = start_run(config, workdir, first=first, check=check)
    for change in keep_data(config, tokenizer, workdir, first=first):
        console.print(f"data: {change}", markup=False, soft_wrap=True)
    if group.count > 1 and (parts := parts_to_import(config, workdir)):
        (key, folder), *_ = given_folders(config, parts[0]).items()
        raise ConfigError(
            f"several processes cannot import weights ({key}); do it in one process first: unicom "
            f"import --workdir={workdir} --config.{key}={folder}"
        )
    import_frozen_parts(config, workdir, console)
    if first:
        keep_starts(config, workdir)
    return tokenizer


def _batches(
    stage: Occurrence,
    config: ConfigDict,
    tokenizer: Tokenizer,
    mesh: Mesh,
    workdir: Path,
    part: str,
) -> Batches:
    """The batches of a split of a stage's data, from a given step on."""
    settings, label = config[stage.name], stage.label
    share = local_rows(mesh, settings.batch_size, settings.accumulate)

    def stream(start: int) -> Loader:
        first = data_start(workdir, label, start, settings.batch_size)
        return loading.stage_loader(config, label, tokenizer, part, first, share)

    return stream


def _trainer(
    stage: Occurrence, config: ConfigDict, tokenizer: Tokenizer, mesh: Mesh, workdir: Path
) -> Trainer:
    def statistics_batches() -> Iterator[Any]:
        stream = _batches(stage, config, tokenizer, mesh, workdir, "train")
        with closing(stream(0)) as batches:
            for batch in itertools.islice(batches, config[stage.name].statistics_batches):
                yield place_batch(batch, mesh)

    return make_trainer(stage.label, config, mesh, statistics_batches, tokenizer)


def _run_stage(
    stage: Occurrence,
    trainer: Trainer,
    config: ConfigDict,
    tokenizer: Tokenizer,
    workdir: Path,
    mesh: Any,
    console: Console,
    group: ProcessGroup,
    asked_to_stop: Callable[[], bool],
    make_observer: MakeObserver | None,
) -> None:
    settings, label = config[stage.name], stage.label
    share = local_rows(mesh, settings.batch_size, settings.accumulate)
    batches = partial(_batches, stage, config, tokenizer, mesh, workdir)

    def part(**wanted: str) -> Batches:
        """Held-out batches of a single task or source of the mixture."""
        alone = config.copy_and_resolve_references()
        narrow(alone, stage.name, **wanted)
        return lambda start: loading.stage_loader(alone, label, tokenizer, "eval", start, share)

    for line in copies_on_mesh(stage.name, config, mesh.shape):
        console.print(f"! {line}", soft_wrap=True)
    frozen = _frozen_parts(stage, config, workdir, mesh)
    if stage.spec.loader == "rows" and config.data.packed:
        unified.check_packed_features(config, label, frozen)
    observe = None
    if make_observer is not None and settings.get("sample_every"):
        observe = make_observer(config, workdir, mesh, frozen)
        if stage.spec.samples:
            look = rollout_observer(
                trainer,
                frozen,
                batches("eval"),
                workdir / label,
                group=settings.group_size,
                decode=tokenizer.decode,
                patch=config.data.patch,
            )
            observe = both(look, observe)
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
        workdir / label,
        console,
        init_params=_initial_params(stage, config, workdir, mesh, console),
        tokens_per_step=stage.spec.tokens_per_step(config, stage.name),
        group=group,
        asked_to_stop=asked_to_stop,
        observe=observe,
        eval_parts={name: part(**wanted) for name, wanted in _parts(config, stage).items()},
    )


def _parts(config: ConfigDict, stage: Occurrence) -> dict[str, dict[str, str]]:
    """The tasks and sources with a held-out loss of their own: name in metrics -> arguments of
    `narrow`."""
    settings, found = config[stage.name], {}
    by_task, by_source = settings.get("eval_by_task"), settings.get("eval_by_source")
    for source, task in part_weights(config, stage.name) if by_task or by_source else ():
        if by_task:
            found[task] = {"task": task}
        if by_source:
            found[f"source/{source}"] = {"source": source}
    return found


def _restore(config: ConfigDict, workdir: Path, label: str, subtree: Subtree, mesh: Any) -> Params:
    """Weights of the stage `label`, on the mesh."""
    module = PARTS[subtree.part].build(config)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        module.abstract(),
        param_shardings(module.specs(), mesh),
    )
    return subtree.of(restore_params(workdir, label, abstract, subtree.read(abstract)))


def _frozen_parts(stage: Occurrence, config: ConfigDict, workdir: Path, mesh: Any) -> Params:
    """The weights of earlier stages and of the autoencoder that this stage reads."""
    frozen = {}
    for name, subtree in stage.spec.reads(config).items():
        label = source_label(config, workdir, subtree.part, before=stage)
        if name == START and furthest(config, workdir, subtree.part, before=stage) is None:
            label = START
        frozen[name] = _restore(config, workdir, label, subtree, mesh)
    if stage.spec.autoencoder:
        frozen |= load_autoencoder(config, workdir, lambda specs: param_shardings(specs, mesh))
    return frozen


def _initial_params(
    stage: Occurrence, config: ConfigDict, workdir: Path, mesh: Any, console: Console
) -> Params | None:
    """The weights that a stage starts from: imported ones, those of the earlier stage of the same
    part, released weights and other stages' parts; None: random initialisation, or it resumes."""
    spec, label = stage.spec, stage.label
    if steps := stage_steps(workdir, label):
        if not is_import(workdir / label / "checkpoints", steps[-1]):
            return None  # it resumes
        console.print(f"{label}: starts from the weights that were imported")
        there, begun = stored_keys(workdir, label), spec.begins_with(config)
        keys = build_stage(config, label).specs()
        wanted = tuple(key for key in keys if key in there or key not in begun)
        imported = _restore(config, workdir, label, Subtree(spec.part, wanted), mesh)
        return _with_other_parts(stage, config, workdir, mesh, console, [], imported)
    if earlier := starts_from(config, workdir, stage):
        console.print(f"{label}: starts from the weights of {earlier.label}")
        return _restore(config, workdir, earlier.label, Subtree(spec.part), mesh)
    sources = sources_of(config, label)
    given = _with_other_parts(stage, config, workdir, mesh, console, sources, {})
    return given or None


def _with_other_parts(
    stage: Occurrence,
    config: ConfigDict,
    workdir: Path,
    mesh: Any,
    console: Console,
    sources: list[Source],
    given: Params,
) -> Params:
    """All weights of a stage: those `given`, those that start as another part's, those of released
    `sources`, and the rest at random; {} if all would be random."""
    label, given, fresh = stage.label, dict(given), []
    specs = build_stage(config, label).specs()
    whole = any(source.whole for source in sources)
    for key, subtree in stage.spec.begins_with(config).items():
        if key in given or whole:
            continue
        source = source_label(config, workdir, subtree.part, before=stage)
        but = f", its {' and '.join(subtree.fresh)} random" if subtree.fresh else ""
        console.print(f"{label}: starts with {key} from the weights of {source}{but}")
        given[key] = _restore(config, workdir, source, subtree, mesh)
        fresh += [(key, name) for name in subtree.fresh]
    if sources:
        console.print(f"{label}: {describe_sources(sources)}", soft_wrap=True)
    if given.keys() == specs.keys() and not fresh:
        return given
    if not sources and not given:
        return {}
    return initial_params(
        specs,
        sources,
        seed_of(config, label),
        lambda specs: param_shardings(specs, mesh),
        given=given,
        fresh=fresh,
    )
