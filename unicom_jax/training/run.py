"""A run: tokenizer, then the stages of a configuration one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from data_pipelines import build as pipelines
from data_pipelines.tokenizer import Tokenizer, check_tokenizer
from unicom_jax.config import ConfigError, to_json
from unicom_jax.core.module import Params
from unicom_jax.interop.autoencoder import adopt_autoencoder, load_autoencoder
from unicom_jax.interop.checkpoint import restore_params, stage_steps
from unicom_jax.models.build import build_codec, build_encoder, build_unified
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import param_shardings, place_batch, replicated
from unicom_jax.training.loop import Batches, LoopConfig, train
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.settings import check_settings
from unicom_jax.training.stages import codec, encoder, unified
from unicom_jax.training.state import split
from unicom_jax.training.step import Stage, Trainer

ORDER = ("encoder", "codec", *unified.NAMES)


def run_stages(
    config: ConfigDict, workdir: Path, console: Console, only: tuple[str, ...] | None = None
) -> None:
    """Trains `config.stages` (or those of them in `only`) in `workdir`; finished ones are skipped.

    Raises:
      ConfigError: an unknown stage, a setting that cannot be, or an autoencoder that is missing or
        does not fit.
      CheckpointError: a stage that the wanted ones build on was not trained.
      TokenizerError: the tokenizer is not the one that the run was started with.
    """
    stages = config.stages if only is None else only
    for name in stages:
        if name not in ORDER:
            raise ConfigError(f"stage {name!r} is unknown; stages are {', '.join(ORDER)}")
    check_settings(config, stages)
    if jax.process_count() > 1:  # each would load the same rows as all others
        raise ConfigError("training runs in one process so far; start it on one host")
    workdir.mkdir(parents=True, exist_ok=True)
    tokenizer = pipelines.load_or_train_tokenizer(config, workdir / "tokenizer")
    if config.data.tokenizer_fingerprint:
        check_tokenizer(tokenizer, config.data.tokenizer_fingerprint, str(workdir))
    config.data.tokenizer_fingerprint = tokenizer.fingerprint()
    config.data.vocab_size = max(tokenizer.vocab_size, config.data.padded_vocab_size)
    adopt_autoencoder(config, workdir)
    (workdir / "config.json").write_text(to_json(config))
    mesh = make_mesh(config.mesh)
    device = jax.devices()[0]
    console.print(f"{workdir}: {', '.join(stages)} on {mesh.size} x {device.device_kind}")
    for name in stages:
        _run_stage(name, config, tokenizer, workdir, mesh, console)


def _run_stage(
    name: str, config: ConfigDict, tokenizer: Tokenizer, workdir: Path, mesh: Any, console: Console
) -> None:
    settings = config[name]

    def batches(part: str) -> Batches:
        return lambda start: pipelines.stage_loader(config, name, tokenizer, part, start)

    stage = _make_stage(name, config, batches("train"), mesh)
    trained, _ = split(stage.module.specs(), stage.freeze)
    optimizer, schedule = make_optimizer(settings, trained, settings.steps)
    trainer = Trainer(
        stage, optimizer, schedule, mesh, config.seed, settings.accumulate, settings.ema_decay
    )
    loop = LoopConfig(
        **{
            field: settings[field] for field in LoopConfig.__dataclass_fields__ if field in settings
        },
        wandb_project=config.wandb_project,
    )
    tokens = _tokens_per_step(name, config)
    train(
        trainer,
        _frozen_parts(name, config, workdir, mesh),
        batches("train"),
        batches("eval"),
        loop,
        workdir / name,
        console,
        init_params=_initial_params(name, config, workdir, mesh, console),
        tokens_per_step=tokens,
        flops_per_step=6.0 * stage.module.param_count() * tokens,
    )


def _make_stage(name: str, config: ConfigDict, batches: Batches, mesh: Any) -> Stage:
    def statistics_batches() -> Iterator[Any]:
        with closing(batches(0)) as stream:
            for batch in itertools.islice(stream, config.codec.statistics_batches):
                yield place_batch(batch, mesh)

    makers: dict[str, Callable[[], Stage]] = {
        "encoder": lambda: encoder.encoder_stage(config),
        "codec": lambda: codec.codec_stage(config, statistics_batches),
    }
    return makers.get(name, lambda: unified.unified_stage(name, config))()


def _tokens_per_step(name: str, config: ConfigDict) -> int:
    """Slots (unified stages) or patches (encoder, codec) that one step reads."""
    settings = config[name]
    if name in unified.NAMES:
        return settings.batch_size * settings.sequence_length
    return settings.batch_size * pipelines.image_policy(config).max_patches(config.data.patch)


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
        frozen |= jax.device_put(load_autoencoder(config, workdir), replicated(mesh))
    if name in unified.NAMES:
        frozen["codec"] = _restore(workdir, "codec", build_codec(config), mesh)
    return frozen


def _initial_params(
    name: str, config: ConfigDict, workdir: Path, mesh: Any, console: Console
) -> Params | None:
    """A unified sub-stage starts from the one before it that has a checkpoint."""
    if name not in unified.NAMES or stage_steps(workdir, name):  # a stage that goes on has its own
        return None
    earlier = unified.NAMES[: unified.NAMES.index(name)]
    for stage in reversed(earlier):
        if stage_steps(workdir, stage):
            console.print(f"{name}: starts from the weights of {stage}")
            return _restore(workdir, stage, build_unified(config), mesh)
    return None
