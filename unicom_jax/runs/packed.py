"""`unicom data prepare packed`, and whether rows with features suit a run's encoder."""

from __future__ import annotations

import argparse
import functools
import io
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.faults import SourceError
from data_pipelines.loading.rows import PROBE, check_facts
from data_pipelines.preparation import beam_engine
from data_pipelines.preparation import prepare_rows as rows
from data_pipelines.preparation.prepare_files import Engine
from data_pipelines.sources.records import SUFFIX
from data_pipelines.sources.split import EVALUATION, TRAIN
from unicom_jax.config import ConfigError, resolve
from unicom_jax.core.paths import open_binary
from unicom_jax.interop.atomic import write_bytes
from unicom_jax.runs.features import FeatureMaker
from unicom_jax.runs.lock import workdir_lock
from unicom_jax.runs.prepare_flags import FILES
from unicom_jax.runs.stages import (
    check_row_stage,
    data_seed,
    row_stages,
    settings_of,
    spec_of,
    with_seed_of,
)

PACKED_ONLY = ("config", "stage", "rows", "features", "features_dtype")
ON_BEAM = ("workers", "runner")
FAR = 0.05  # of the features' size: other devices or dtypes differ by less, other encoders by more


def check_flags(args: argparse.Namespace) -> None:
    """Refuses flags of the other kind of preparation.

    Raises:
      ConfigError: there is such a flag; the message names it.
    """
    packed = args.dataset == "packed"
    others = PACKED_ONLY if args.dataset in FILES else (*PACKED_ONLY, *ON_BEAM, "max_broken")
    for name in ("package", "size", "max_broken") if packed else others:
        if getattr(args, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} does nothing for {args.dataset}; leave it out")
    if packed and args.config is None:
        raise ConfigError("the rows of which configuration? add --config=FILE, as for unicom train")
    if not packed and args.overrides:
        raise ConfigError(f"{args.overrides[0]} does nothing for {args.dataset}; leave it out")
    if args.workers is not None and args.runner not in (None, beam_engine.LOCAL):
        raise ConfigError(
            f"--workers does nothing for --runner={args.runner}, which has flags of its own for "
            "that; leave it out"
        )
    if args.features_dtype is not None and args.features is None:
        raise ConfigError("--features-dtype needs --features=RUN")


def engine_of(args: argparse.Namespace) -> Engine | None:
    """Where records of files are prepared: on Beam if --workers or --runner asks for it."""
    if args.workers is None and args.runner is None:
        return None
    beam_engine.check_engine(args.runner_flags)
    return Engine(args.runner or beam_engine.LOCAL, args.workers or 1, tuple(args.runner_flags))


def prepare_packed(args: argparse.Namespace, console: Console) -> str:
    """Packs a stage's rows and returns a line about the result, with its folder.

    Raises:
      ConfigError: flags that exclude each other, or a stage without rows.
      SourceError: Beam is missing, the folder holds another preparation, or data cannot be packed.
    """
    beam_engine.check_engine(args.runner_flags)
    config = resolve(args.config, args.overrides)
    config.data.packed = ""  # rows are made from the source
    stage = args.stage or row_stages(config)[0]
    check_row_stage(config, stage)
    settings, run = settings_of(config, stage), args.features
    out = Path(args.out)
    features = FeatureMaker(run, args.features_dtype or "float32") if run else None
    stored = Path(run, "tokenizer") if run else None
    tokenizer = load_or_train_tokenizer(config, stored if stored and stored.is_dir() else None)
    plan = rows.make_plan(
        with_seed_of(config.to_dict(), stage),
        spec_of(stage).name,
        tokenizer,
        out,
        features,
        seed=data_seed(config, stage),
        folder=stage,
    )
    wanted = {
        TRAIN: args.rows or settings.steps * settings.batch_size,
        EVALUATION: settings.eval_batches * settings.batch_size,
    }
    window = settings.window_rows
    shards = [
        shard
        for split, count in wanted.items()
        for shard in rows.shards_of(split, -(-count // window) * window, window)
    ]
    about = {"features": {"dtype": features.dtype} if features else None}
    with workdir_lock(Path(plan.directory)):
        missing = rows.begin(plan, tokenizer, shards, window, about)
        if features:
            keep_probe(plan, shards[0], features)
        return _pack(args, plan, shards, missing, window, console)


def _pack(
    args: argparse.Namespace,
    plan: rows.Plan,
    shards: Sequence[rows.Shard],
    missing: Sequence[rows.Shard],
    window: int,
    console: Console,
) -> str:
    """Writes the missing files and the manifest; `window` is the number of rows in a window."""
    directory, total = Path(plan.directory), window * sum(s.stop - s.start for s in shards)
    sizes = {shard.name: window * (shard.stop - shard.start) for shard in shards}

    def done() -> int:
        return sum(sizes.get(path.name.removesuffix(SUFFIX), 0) for path in directory.iterdir())

    before, began = done(), time.perf_counter()
    if before:
        console.print(f"{directory}: resumes, {before} of {total} rows are there", soft_wrap=True)
    if missing:
        work = functools.partial(rows.write_shard, plan)
        engine = (args.runner or beam_engine.LOCAL, args.workers or 1, args.runner_flags)
        with beam_engine.progress(done, total, console):
            beam_engine.run(work, missing, directory / beam_engine.LOG, *engine)
    manifest = rows.finish(plan, shards)
    rate = (total - before) / (time.perf_counter() - began)
    return _summary(directory, manifest, rate)


def _summary(directory: Path, manifest: Mapping[str, Any], rate: float) -> str:
    splits = manifest["splits"]
    size = sum(path.stat().st_size for path in directory.glob(f"*{SUFFIX}")) / 2**20
    lost = {
        name: sum(about["counts"].get(name, 0) for about in splits.values())
        for name in ("unreadable", "broken", "overlong", "left_over")
    }
    passed = ", ".join(f"{count} {name}" for name, count in lost.items() if count)
    return (
        f"{directory}: {splits[TRAIN]['rows']} rows to train on and {splits[EVALUATION]['rows']} "
        f"held out, {size:.1f} MiB, {rate:.1f} rows/s{f'; skipped: {passed}' * bool(passed)}; "
        f"train on them with {shlex.quote(f'--config.data.packed={directory.parent}')}"
    )


# ---- features ---------------------------------------------------------------------------------


def keep_probe(plan: rows.Plan, shard: rows.Shard, features: FeatureMaker) -> None:
    """Stores a few pictures with their features, by which an encoder can be recognised.

    Raises:
      SourceError: there is already a probe of another encoder.
    """
    path = Path(plan.directory, PROBE)
    pictured = next(iter(rows.shard_rows(rows.without_features(plan), shard))).batch
    patches, grids = pictured.patches[None], pictured.grids[None]
    made = features(patches, grids).astype(np.float32)
    if path.is_file():
        _compare(path, made[0], "this run's encoder")
        return
    content = io.BytesIO()
    np.savez(content, patches=patches[0], grids=grids[0], features=made[0])
    write_bytes(path, content.getvalue())


def read_probe(directory: Path, stage: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Pictures (M, N, P) and grids (M, 2) of the rows' probe; None if rows hold pictures."""
    path = directory / stage / PROBE
    if not path.is_file():
        return None
    with open_binary(path) as file, np.load(file) as probe:
        return probe["patches"], probe["grids"]


def check_probe(directory: Path, stage: str, found: np.ndarray) -> None:
    """Compares features of the probe's pictures with those stored with the rows.

    Raises:
      SourceError: the stored ones come from another encoder.
    """
    _compare(directory / stage / PROBE, found, "the encoder of this run")


def _compare(path: Path, found: np.ndarray, whose: str) -> None:
    with open_binary(path) as file, np.load(file) as probe:
        stored = probe["features"]
    begin = f"{path.parent}: the rows were made with"
    check_facts({"features": list(found.shape)}, {"features": list(stored.shape)}, begin)
    size = np.sqrt(np.mean(np.square(stored)))
    apart = np.sqrt(np.mean(np.square(stored - found))) / max(size, 1e-6)
    if not apart <= FAR:
        raise SourceError(
            f"{path.parent}: the rows hold features of another encoder than {whose} "
            f"({apart:.0%} apart): prepare them with --features=RUN of this one"
        )
