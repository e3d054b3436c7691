"""Released weights as step 0 of a stage, for `unicom import` and for runs with a given encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module, Params, Specs, map_specs
from unicom_jax.families.build import VISION
from unicom_jax.interop.atomic import new_folder
from unicom_jax.models.paint_space import AUTOENCODER
from unicom_jax.runs.checkpoint import is_import, save_import
from unicom_jax.runs.initial import initial_params
from unicom_jax.runs.origin import given_parts, link_tree, take_weights
from unicom_jax.runs.released import (
    Source,
    build_stage,
    describe_sources,
    given_folders,
    sources_of,
)
from unicom_jax.runs.stages import (
    PARTS,
    STAGES,
    START,
    Config,
    occurrences,
    parse,
    seed_of,
    spec_of,
)
from unicom_jax.runs.trained import first_of, furthest
from unicom_jax.runs.workdir import stage_steps

# Parts for which a folder has all that other stages read (of the encoder: the image tower).
READ_ALONE = (VISION.part, AUTOENCODER)


def check_stages(config: Config) -> None:
    """Refuses an `init_from` whose stage is not trained: the rest of its weights would stay random.

    Parts in `READ_ALONE`, and parts that come whole from another run, are accepted.

    Raises:
      ConfigError: such a key exists; the message names it.
    """
    whole = {*READ_ALONE, *given_parts(config)}
    for part in PARTS:
        stages = [name for name, spec in STAGES.items() if spec.part == part]
        if part in whole or set(stages) & set(config["stages"]):
            continue
        for key, given in given_folders(config, part).items():
            raise ConfigError(
                f"{key}={given} gives only one part, and config.stages does not train the others; "
                f"add {' or '.join(stages)} to the stages"
            )


def import_frozen_parts(config: ConfigDict, workdir: Path, console: Console) -> None:
    """Takes from other runs or released weights the parts that stages read and do not train."""
    take_weights(config, workdir, console)
    for part in parts_to_import(config, workdir):
        stage = first_of(config, part).label
        import_stage(config, stage, sources_of(config, stage), workdir, console)


def keep_starts(config: Config, workdir: Path) -> None:
    """Also keeps imported weights of a stage that samples as `START`: throughout training they are
    the policy before the stage, and its own checkpoints replace them."""
    for stage in occurrences(config["stages"]):
        checkpoints, steps = (
            workdir / stage.label / "checkpoints",
            stage_steps(workdir, stage.label),
        )
        if stage.spec.samples and steps and is_import(checkpoints, steps[-1]):
            with new_folder(workdir / START, replace=True) as folder:
                link_tree(checkpoints / "0", folder / "checkpoints" / "0")


def parts_to_import(config: Config, workdir: Path) -> list[str]:
    """The parts of `READ_ALONE` that come from released weights, are not trained here, and are not
    imported yet."""
    trained = {one.spec.part for one in occurrences(config["stages"])} | given_parts(config)
    return [
        part
        for part in READ_ALONE
        if given_folders(config, part)
        and part not in trained
        and furthest(config, workdir, part) is None
    ]


def import_stage(
    config: ConfigDict, stage: str, sources: list[Source], workdir: Path, console: Console
) -> None:
    specs = build_stage(config, stage).specs()
    if parse(stage) not in occurrences(
        config.stages
    ):  # never trained, so only given weights are useful
        named = {source.path[0] for source in sources if source.path}
        specs = {name: specs[name] for name in named} or specs
    elif not any(source.whole for source in sources):
        # Weights that begin as another part's are filled in when the stage is trained.
        begun = spec_of(stage).begins_with(config)
        specs = {name: tree for name, tree in specs.items() if name not in begun}
    console.print(f"{stage}: {describe_sources(sources)}", soft_wrap=True)
    total = sum(fp32_bytes(source.module) for source in sources)
    with transfer_progress(console, stage, total) as arrived:
        params = initial_params(specs, sources, seed_of(config, stage), on_this_host, arrived)
    save_import(workdir / stage / "checkpoints", params)


def on_this_host(specs: Specs) -> Params:
    """Shardings that put all weights into host memory, with or without accelerators."""
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    return map_specs(lambda spec: host, specs)


def fp32_bytes(module: Module) -> int:
    """Bytes of the weights in fp32."""
    return 4 * module.param_count()


@contextmanager
def transfer_progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of the bytes that have arrived, with their rate."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda nbytes: progress.advance(bar, nbytes)
