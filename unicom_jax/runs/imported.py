"""Released weights as step 0 of a stage, for `unicom import` and for runs with a given encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module, Params, Specs, map_specs
from unicom_jax.runs.checkpoint import save_import, stage_steps
from unicom_jax.runs.initial import (
    Source,
    build_stage,
    describe_sources,
    initial_params,
    sources_of,
)
from unicom_jax.runs.weights import UNIFIED_STAGES


def check_stages(config: Mapping[str, Any]) -> None:
    """Refuses an `init_from` whose stage is not trained: the rest of its weights would stay random.

    The encoder's is no such part: a run uses nothing but its image tower.

    Raises:
      ConfigError: it names the key.
    """
    codec, unified = config["codec"], config["unified"]
    wanted = (
        ("codec.init_from", codec["init_from"], ("codec",)),
        ("codec.decoder.init_from", codec["decoder"]["init_from"], ("codec",)),
        ("unified.init_from", unified["init_from"], UNIFIED_STAGES),
    )
    for key, given, stages in wanted:
        if given and not set(stages) & set(config["stages"]):
            raise ConfigError(
                f"{key}={given} gives a part only, and config.stages does not train the rest; "
                f"add {' or '.join(stages)} to the stages"
            )


def import_frozen_encoder(config: ConfigDict, workdir: Path, console: Console) -> None:
    """`encoder.init_from` of a run that does not train its encoder; nothing where it is there."""
    if not stage_steps(workdir, "encoder"):
        import_stage(config, "encoder", sources_of(config, "encoder"), workdir, console)


def import_stage(
    config: ConfigDict, stage: str, sources: list[Source], workdir: Path, console: Console
) -> None:
    specs = build_stage(config, stage).specs()
    if stage not in config.stages:  # never trained, so only what is given is of use
        named = {source.path[0] for source in sources if source.path}
        specs = {name: specs[name] for name in named} or specs
    console.print(f"{stage}: {describe_sources(sources)}", soft_wrap=True)
    total = sum(fp32_bytes(source.module) for source in sources)
    with transfer_progress(console, stage, total) as arrived:
        params = initial_params(specs, sources, config.seed, on_this_host, arrived)
    save_import(workdir / stage / "checkpoints", params)


def on_this_host(specs: Specs) -> Params:
    """Shardings that put all weights into the host's memory, accelerators or not."""
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    return map_specs(lambda spec: host, specs)


def fp32_bytes(module: Module) -> int:
    """What the weights take in memory, in fp32."""
    return 4 * module.param_count()


@contextmanager
def transfer_progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that is told how many bytes have arrived, and shows how fast."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda nbytes: progress.advance(bar, nbytes)
