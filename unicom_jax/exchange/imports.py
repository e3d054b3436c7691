"""`unicom import`: makes a workdir of released weights, or of a model exported to PyTorch.

An import is step 0 of a stage, with `params` only. A stage that is trained starts from them; one
that is not (the encoder of most runs) uses them unchanged.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table as Page
from rich.text import Text

from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.sequences.tokenizer import Tokenizer, load_tokenizer
from unicom_jax.config import ConfigError, complete, from_json, to_json
from unicom_jax.config.check import check_idle_options
from unicom_jax.core.module import Module
from unicom_jax.core.paths import as_path, remove_tree
from unicom_jax.exchange.hub import keep_origins
from unicom_jax.exchange.written import GIVEN_TEMPLATE
from unicom_jax.interop.atomic import new_folder
from unicom_jax.interop.folders import check_model, module_in, write_model
from unicom_jax.interop.layouts import exported
from unicom_jax.interop.layouts.description import DESCRIPTION, read_description
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.mapping import places
from unicom_jax.interop.tensors import DTYPES, TensorFact, open_tensors, weight_files
from unicom_jax.interop.transfer import check_facts, load_weights
from unicom_jax.models.paint_space import AUTOENCODER
from unicom_jax.runs.autoencoder import adopt_autoencoder
from unicom_jax.runs.checkpoint import save_import
from unicom_jax.runs.configuration import open_run
from unicom_jax.runs.imported import (
    check_stages,
    fp32_bytes,
    import_stage,
    on_this_host,
    transfer_progress,
)
from unicom_jax.runs.released import Source, sources_of
from unicom_jax.runs.stages import PARTS, STAGES, UNIFIED, in_model, parse
from unicom_jax.runs.start import start_run, use_tokenizer
from unicom_jax.runs.trained import first_of
from unicom_jax.runs.workdir import stage_steps

CODECS_OWN = "codec.autoencoder.path"  # a codec's autoencoder stays where it is
# The configuration keys for the folders that flags can give.
FLAGS = {
    "encoder": ("encoder.init_from",),
    "language": ("unified.init_from",),
    "compressor": ("codec.init_from",),
    "decoder": ("codec.decoder.init_from",),
    "autoencoder": (CODECS_OWN,),
    "cheers": ("unified.init_from", "autoencoder.init_from"),
}
# The same, where it differs for a family that draws in the latents of the stage `autoencoder`.
IN_LATENTS = {AUTOENCODER: ("autoencoder.init_from",)}
FLAGS_OF = {
    "cheers": IN_LATENTS,
    "uae": {**IN_LATENTS, "decoder": ("unified.uae.decoder.init_from",)},
}

# Not in its config.json: the code beside it appends marks to Qwen2.5's vocabulary.
MARKS = (
    "Cheers marks pictures by tokens 151667 and 151668 and words left out by 151669; "
    "data.tokenizer has to give these ids to <|vision_start|>, <|vision_end|> and <no_mean>"
)

# ---- parts of a run ---------------------------------------------------------------------------


def run_import(args: argparse.Namespace, console: Console) -> None:
    """Runs `unicom import` with its parsed flags.

    Raises:
      ConfigError: flags conflict; otherwise as `import_model` and `import_parts`.
    """
    workdir = as_path(args.workdir)
    folders = {flag: folder for flag in FLAGS if (folder := getattr(args, flag))}
    if args.model and (folders or args.config or args.overrides):
        raise ConfigError("--model brings all parts and its configuration; give it alone")
    if args.cheers and args.language:
        raise ConfigError("--cheers brings a language model of its own; leave --language out")
    if args.cheers:
        module_in(as_path(args.cheers), LAYOUTS["cheers"])  # refuses other models by name
    if args.model:
        import_model(as_path(args.model), workdir, console, args.dry_run)
    else:
        config = open_run(workdir, args.config, args.overrides)
        import_parts(config, folders, workdir, console, args.dry_run)
    if not args.dry_run:
        console.print(f"imported: {workdir}", markup=False, soft_wrap=True)


def import_parts(
    config: ConfigDict, folders: Mapping[str, str], workdir: Path, console: Console, dry_run: bool
) -> None:
    """Checks released weights and writes them as step 0 of their stages in `workdir`.

    Args:
      config: that of the run. It is stored in `workdir` with no folder but the autoencoder's.
      folders: by the names of `FLAGS`; any other folder is that of the configuration.
      dry_run: check and show names, shapes and types, but write nothing.

    Raises:
      ConfigError: nothing to import, a folder of another model, a part that the pathway does not
        have, or one that would stay random.
      WeightsError: a folder is damaged.
      FileExistsError: a stage already has a checkpoint.
    """
    named = _named(folders, config.unified.pathway)
    if CODECS_OWN in named:
        config.codec.autoencoder.path = named[CODECS_OWN]
    stored = workdir / "tokenizer"
    tokenizer = load_tokenizer(stored) if stored.is_dir() else load_or_train_tokenizer(config, None)
    asked = config.data.vocab_size
    use_tokenizer(config, tokenizer, workdir)
    adopt_autoencoder(config, workdir, copy=False)
    given = from_json(config.to_dict())
    given.update_from_flattened_dict(named)
    check_idle_options(given)
    check_stages(given)
    plan = _plan(given, workdir)
    parts = [(stage, source) for stage, sources in plan.items() for source in sources]
    rows = [(s.name, stage, s.module, s.folder, s.check()) for stage, s in parts]
    if CODECS_OWN in named:
        folder, layout = as_path(named[CODECS_OWN]), LAYOUTS["autoencoder"]
        module = module_in(folder, layout)
        rows.append(("autoencoder", "", module, folder, check_model(folder, layout, module)))
    if not rows:
        flags = ", ".join(f"--{flag}" for flag in FLAGS)
        raise ConfigError(f"nothing to import; give {flags} or --model")
    _show(rows, console)
    if "cheers" in folders:
        console.print(f"note: {MARKS}", markup=False, soft_wrap=True)
    if dry_run:
        console.print("nothing written")
        return
    with _undone_on_failure(workdir, plan):
        config.data.vocab_size = asked  # so that retraining gives the same tokenizer
        start_run(config, workdir)
        for stage, sources in plan.items():
            import_stage(given, stage, sources, workdir, console)
        keep_origins(workdir, {source.key: str(source.folder) for _, source in parts})


def _named(folders: Mapping[str, str], pathway: str) -> dict[str, str]:
    """The folders that flags give, by configuration key.

    Raises:
      ConfigError: two flags give the same key.
    """
    named: dict[str, str] = {}
    for flag, folder in folders.items():
        for key in (FLAGS | FLAGS_OF.get(pathway, {}))[flag]:
            if key in named:
                raise ConfigError(f"--{flag} gives {key}, as another flag does; leave one out")
            named[key] = folder
    return named


def _plan(config: ConfigDict, workdir: Path) -> dict[str, list[Source]]:
    """The stages to be written, and the sources of each."""
    stages = [first_of(config, part).label for part in PARTS]
    plan = {stage: found for stage in stages if (found := sources_of(config, stage))}
    for stage in plan:
        if stage_steps(workdir, stage):
            raise FileExistsError(
                f"{workdir / stage} has checkpoints already; name a new --workdir, or delete it"
            )
    return plan


@contextmanager
def _undone_on_failure(workdir: Path, stages: Mapping[str, Any]) -> Iterator[None]:
    """Removes what a failed import wrote, including the workdir if it is new."""
    before = {path.name for path in workdir.iterdir()} if workdir.is_dir() else None
    try:
        yield
    except BaseException:
        written = [workdir / stage / "checkpoints" for stage in stages]
        if workdir.is_dir():
            written += [path for path in workdir.iterdir() if path.name not in (before or ())]
        for path in written if before is not None else [workdir]:
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
        raise


# ---- a whole model ----------------------------------------------------------------------------


def import_model(folder: Path, workdir: Path, console: Console, dry_run: bool) -> None:
    """Makes a workdir, whole or not at all, of what `unicom export --to=pytorch` wrote.

    Raises:
      ConfigError: `folder` is not such an export.
      WeightsError: it is damaged.
      TokenizerError: its tokenizer is missing or a different one.
      FileExistsError: `workdir` is not empty.
    """
    description = read_description(folder)
    run = _run_of(description, folder)
    tokenizer = _given_tokenizer(folder)
    config, module = _configured(run, tokenizer, folder)
    exported.check_sections(description, module, config, folder / DESCRIPTION)
    table, tensors = exported.table(module), open_tensors(folder).renamed(exported.new_name)
    twins = exported.twins(module)
    check_facts(tensors, places(table, module.specs()), twins=twins)
    _show([("all", "", module, folder, tensors.facts)], console)
    if dry_run:
        console.print("nothing written")
        return
    with new_folder(workdir) as new:
        with transfer_progress(console, "reading", fp32_bytes(module)) as arrived:
            shardings = on_this_host(module.specs())
            params = load_weights(
                tensors,
                table,
                module.specs(),
                twins=twins,
                shardings=shardings,
                arrived=arrived,
            )
        for tree, of in in_model(config).items():
            checkpoints = new / _stage_of(of.part, tree, run) / "checkpoints"
            save_import(checkpoints, of.placed(params[tree]))
        if module.autoencoder is not None:
            layout, weights = LAYOUTS["autoencoder"], params["autoencoder"]
            write_model(new / AUTOENCODER, layout, module.autoencoder, weights)
        tokenizer.save(new / "tokenizer")
        # Only the last stage can be trained further: an export has of the earlier stages only what
        # the model uses (of the encoder, its image tower).
        config.stages = (_stage_of(UNIFIED.part, "unified", run),)
        (new / "config.json").write_text(to_json(config), encoding="utf-8")
        keep_origins(new, {"unified.init_from": str(folder)})


def _run_of(description: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What an export's config.json says of its run.

    Raises:
      ConfigError: nothing, so it is no export.
    """
    run = description.get("run")
    if not isinstance(run, dict) or "config" not in run:
        raise ConfigError(
            f"{folder / DESCRIPTION} has no run.config, so `unicom export --to=pytorch` did not "
            "write it; give parts by --encoder, --language, --compressor, --decoder or a released "
            "checkpoint of Cheers by --cheers instead"
        )
    return run


def _configured(
    run: Mapping[str, Any], tokenizer: Tokenizer, folder: Path
) -> tuple[ConfigDict, exported.Model]:
    """The run's configuration with its tokenizer, and the modules of its model.

    Raises:
      ConfigError: the configuration is damaged.
      TokenizerError: the tokenizer is not that of the run.
    """
    try:
        config = from_json(complete(run["config"]))
        use_tokenizer(config, tokenizer, folder)
        return config, exported.of_run(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / DESCRIPTION}: run.config is damaged or of another version ({error!r}); "
            "copy the file again, or import with the version that wrote it"
        ) from error


def _stage_of(part: str, tree: str, run: Mapping[str, Any]) -> str:
    """The stage from which a tree of an exported model, part of `part`, came; if that was not
    recorded, the last stage that trains it."""
    stage = (run.get("steps") or {}).get(tree, [""])[0]
    if (found := parse(stage)) and found.spec.part == part:
        return found.name  # its first time here
    return [name for name, spec in STAGES.items() if spec.part == part][-1]


def _given_tokenizer(folder: Path) -> Tokenizer:
    """An export's tokenizer as its run had it, with the chat template that was given to the run.

    The export's own template follows from the configuration.
    """
    tokenizer = load_tokenizer(folder)
    given = folder / GIVEN_TEMPLATE
    details = {name: value for name, value in tokenizer.details.items() if name != "chat_template"}
    if given.is_file():
        details["chat_template"] = given.read_text(encoding="utf-8")
    return dataclasses.replace(tokenizer, details=details)


# ---- what the user sees -----------------------------------------------------------------------

Row = tuple[str, str, Module, Path, Mapping[str, TensorFact]]


def _show(rows: list[Row], console: Console) -> None:
    """Prints a line per part: what the headers in its folder say, and which files are read."""
    page = Page("part", "stage", "tensors", "parameters", "size", "type", "read from", box=None)
    for column in page.columns[2:5]:
        column.justify = "right"
    for part, stage, module, folder, facts in rows:
        kinds = ", ".join(sorted({fact.dtype for fact in facts.values()}))
        size = sum(math.prod(f.shape) * DTYPES[f.dtype].itemsize for f in facts.values()) / 1e9
        numbers = str(len(facts)), f"{module.param_count():,}", f"{size:.2f} GB"
        page.add_row(part, stage, *numbers, kinds, Text(_files(folder, facts)))
    console.print(page)
    for folder, unread in {(row[3], one) for row in rows if (one := _unread(row[3]))}:
        note = f"note: {unread.name} in {folder} is not read, nor do the Hub's libraries read it"
        console.print(note, markup=False, soft_wrap=True)


def _files(folder: Path, facts: Mapping[str, TensorFact]) -> str:
    """The one file, or the folder and the number of its shards."""
    shards = {fact.shard for fact in facts.values()}
    return str(next(iter(shards))) if len(shards) == 1 else f"{folder} ({len(shards)} shards)"


def _unread(folder: Path) -> Path | None:
    stems = {layout.stem for layout in LAYOUTS.values()}
    return next((one for stem in stems if (one := weight_files(folder, stem).unread)), None)
