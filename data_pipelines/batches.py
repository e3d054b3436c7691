"""The batches of a stage: packed rows of documents, or pictures with one caption each.

`stage` is the name of a stage's settings in the configuration. `seed` decides the order of its
training documents; by default it is that of the configuration. What is held out is always read in
the same order, so that losses of several stages can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from data_pipelines.build import (
    Config,
    grid_unit,
    image_policy,
    open_one,
    source_options,
    stage_packing,
    stage_sequence,
)
from data_pipelines.faults import SourceError
from data_pipelines.loading.loader import (
    Loader,
    LoaderConfig,
    choose_window_documents,
    make_loader,
)
from data_pipelines.loading.pictures import PictureConfig, WeightedSource, make_picture_loader
from data_pipelines.loading.prompts import PromptBatches
from data_pipelines.loading.rows import open_rows, recorded
from data_pipelines.sequences.mixture import DocumentStream, Entry, Mixture, entries_of
from data_pipelines.sequences.tasks import TASKS
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.chosen import having
from data_pipelines.sources.configured import (
    ConfiguredSource,
    Part,
    configured_sources,
    part_weights,
    picture_sources,
)
from data_pipelines.sources.rows import ReadImage
from data_pipelines.sources.split import EVALUATION, TRAIN
from data_pipelines.sources.undecoded import ONE_PICTURE
from unicom_jax.core.paths import as_path

NEEDS_EDITS = ("edit", "interleaved")
TOKEN_PROBES = 128  # documents of a source and task whose slots are counted
PATHS = ("path", "paths", "name")  # options of a source that locate its data

Share = tuple[int, ...] | None  # the rows of a batch that this process makes; None: all


def _loader_config(config: Config, rows: int, share: Share) -> LoaderConfig:
    data = config["data"]
    return LoaderConfig(
        rows, share, data["threads"], data["prefetch"], data["workers"], data["max_unreadable"]
    )


def order_seed(config: Config, split: str, seed: int | None) -> int:
    """The seed of a split's order."""
    if split == EVALUATION:
        return config["seed"] + 1
    return config["seed"] if seed is None else seed


def document_stream(
    config: Config,
    stage: str,
    tokenizer: Tokenizer,
    split: str = TRAIN,
    *,
    seed: int | None = None,
    read: ReadImage | None = None,
) -> DocumentStream:
    """The documents of a stage's mixture. `read`: see `build.open_one`."""
    weights = part_weights(config, stage)
    if config["data"]["weight_unit"] == "tokens" and len(weights) > 1:
        tokens = dict(config[stage]["document_tokens"])
        if not {_label(part) for part in weights} <= tokens.keys():
            tokens = dict(document_tokens(config, stage, tokenizer))
        weights = {part: weight / tokens[_label(part)] for part, weight in weights.items()}
    return _stream(config, stage, tokenizer, weights, split, seed, read)


def _stream(
    config: Config,
    stage: str,
    tokenizer: Tokenizer,
    weights: Mapping[Part, float],
    split: str,
    seed: int | None,
    read: ReadImage | None = None,
) -> DocumentStream:
    entries: list[Entry] = []
    sources = configured_sources(config, stage)
    for one in sources:
        tasks = {task: weight for (name, task), weight in weights.items() if name == one.name}
        plain = open_one(config, one, split, sharers=len(sources), read=read)
        # Only Scenes make edits on demand; elsewhere a second source would be the same records.
        edits = plain
        if one.kind == "scenes":
            edits = open_one(config, one, split, True, sharers=len(sources), read=read)
        records = {
            task: (edits if task in NEEDS_EDITS else plain).looking(TASKS[task].look)
            for task in tasks
        }
        entries += entries_of(tasks, records, one.name)
    return DocumentStream(
        Mixture(entries, order_seed(config, split, seed)),
        tokenizer,
        stage_sequence(config, stage),
        stage_packing(config, stage),
        broken="skip",
        overlong=config[stage]["overlong"],
    )


def document_tokens(
    config: Config, stage: str, tokenizer: Tokenizer
) -> tuple[tuple[str, float], ...]:
    """Mean slots of a document of each source and task of a stage: (SOURCE/TASK, slots) each,
    measured on the first documents of each in the run's own order.
    """
    parts = list(part_weights(config, stage))
    stream = _stream(config, stage, tokenizer, dict.fromkeys(parts, 1.0), TRAIN, None)
    sizes: dict[str, list[int]] = {_label(part): [] for part in parts}
    for index in range(len(parts) * TOKEN_PROBES):
        entry = stream.mixture.entries[stream.mixture.pick(index).entry]
        sizes[_label((entry.origin, entry.task))].append(len(stream.document(index)[0]))
    return tuple((label, sum(found) / len(found)) for label, found in sizes.items())


def _label(part: Part) -> str:
    return "/".join(filter(None, part))


def row_facts(config: Config, stage: str, *, seed: int | None = None) -> dict[str, Any]:
    """What decides a stage's packed rows, besides the tokenizer and the data at the source's path.

    Two configurations with the same facts have the same rows, bit for bit, where the same data are
    at both paths. Only the last component of a path counts, so the data may move.
    """
    sources = {one.name: _source_facts(config, one) for one in configured_sources(config, stage)}
    unit, given = config["data"]["weight_unit"], config[stage]["window_documents"]
    scale = config["data"]["decode_scale"]
    return {
        **({"window_documents": given} if given else {}),
        "seed": config["seed"],
        **({} if seed is None else {"stage_seed": seed}),
        **({"source": sources[""]} if "" in sources else {"sources": sources}),
        **({"weight_unit": unit} if unit != "documents" else {}),
        **({"decode_scale": scale} if scale else {}),
        "mixture": {task: share for task, share in config[stage]["mixture"].items() if share},
        "overlong": config[stage]["overlong"],
        "sequence": recorded("sequence", stage_sequence(config, stage)),
        "packing": recorded("packing", stage_packing(config, stage)),
    }


def _source_facts(config: Config, one: ConfiguredSource) -> dict[str, Any]:
    facts = source_options(config, TRAIN, with_edits=True, one=one)
    if "scene" in facts:
        facts["scene"] = dict(facts["scene"])
        if not facts["scene"]["long_captions"]:  # as rows from before the key
            del facts["scene"]["long_captions"]
    facts.pop("images", None)
    for key in facts.keys() & set(PATHS):
        facts["path"] = Path(facts.pop(key)).name
    return {**facts, "weight": one.weight, "tasks": dict(one.tasks)} if one.name else facts


def unified_loader(
    config: Config,
    stage: str,
    tokenizer: Tokenizer,
    split: str = TRAIN,
    start: int = 0,
    share: Share = None,
    *,
    seed: int | None = None,
    folder: str = "",
) -> Loader:
    """Packed rows of the stage's mixture: read from `data.packed` if it is set, else made here.

    Args:
      folder: that of the stage's rows in `data.packed`; by default the stage's name.
    """
    loading = _loader_config(config, config[stage]["batch_size"], share)
    if packed := config["data"]["packed"]:
        rows = open_rows(
            as_path(packed).expanduser(),
            folder or stage,
            split,
            row_facts(config, stage, seed=seed),
            tokenizer.fingerprint(),
            loading,
            order_seed(config, TRAIN, seed),
        )
        return Loader(rows, loading, start)
    stream = document_stream(config, stage, tokenizer, split, seed=seed)
    # Measured in the run's own order, so that a stage is packed alike every time it is trained.
    of_training = stream if split == TRAIN and seed is None else None
    documents = window_documents(config, stage, tokenizer, of_training)
    return make_loader(stream, loading, start=start, window_documents=documents)


def window_documents(
    config: Config, stage: str, tokenizer: Tokenizer, stream: DocumentStream | None = None
) -> int:
    """The number of documents in a stage's windows, in both splits: as configured, or else measured
    on the first documents of the training split.

    Args:
      stream: those documents; None opens them.
    """
    if given := config[stage]["window_documents"]:
        return given
    return choose_window_documents(stream or document_stream(config, stage, tokenizer, TRAIN))


def picture_loader(
    config: Config,
    stage: str,
    tokenizer: Tokenizer,
    split: str = TRAIN,
    start: int = 0,
    share: Share = None,
    *,
    captioned: bool = True,
    seed: int | None = None,
) -> Loader:
    """Pictures, with one caption each if `captioned`; otherwise none is needed. The weights of the
    sources are shares of the pictures.
    """
    encoder = config["encoder"]
    return make_picture_loader(
        picture_parts(config, stage, split, captioned=captioned),
        tokenizer,
        _pictures(config, encoder["text"]["max_length"], encoder["captions"], captioned),
        _loader_config(config, config[stage]["batch_size"], share),
        seed=order_seed(config, split, seed),
        start=start,
    )


def _pictures(config: Config, text_length: int, captions: str, captioned: bool) -> PictureConfig:
    return PictureConfig(
        patch=config["data"]["patch"],
        images=image_policy(config),
        pool=grid_unit(config),
        text_length=text_length,
        captions=captions if captioned else "none",
    )


def prompt_loader(
    config: Config,
    stage: str,
    tokenizer: Tokenizer,
    split: str = TRAIN,
    start: int = 0,
    share: Share = None,
    *,
    captions: str = "none",
    questions: bool = False,
    seed: int | None = None,
) -> Loader:
    """Pictures for a policy (`PromptBatch`), loaded as by `picture_loader`. The stage's settings
    `max_tokens`, `question_tokens` and `answer_tokens` limit captions, questions and answers.
    `captions`: as of `PictureConfig`.
    """
    captioned = captions != "none"
    settings, kind = config[stage], PromptBatches
    if questions:
        asked = {f"{what}_length": settings[f"{what}_tokens"] for what in ("question", "answer")}
        kind = partial(PromptBatches, **asked)
    return make_picture_loader(
        picture_parts(config, stage, split, captioned=captioned),
        tokenizer,
        _pictures(config, settings["max_tokens"], captions, captioned),
        _loader_config(config, settings["batch_size"], share),
        seed=order_seed(config, split, seed),
        start=start,
        kind=kind,
    )


def picture_parts(
    config: Config, stage: str, split: str, *, captioned: bool
) -> list[WeightedSource]:
    """The opened sources of a stage's pictures.

    Raises:
      SourceError: one of them has no record with what the stage needs.
    """
    sources = picture_sources(config, stage, captioned=captioned)
    takes = ("image", "captions") if captioned else ("image",)
    opened = [open_one(config, one, split, sharers=len(sources)) for one in sources]
    opened = [having(records.looking(ONE_PICTURE), takes) for records in opened]
    for one, records in zip(sources, opened, strict=True):
        if not len(records):
            raise SourceError(
                f"{one}: no record has {' and '.join(takes)}, which the stage {stage!r} needs: "
                "add some, or leave the stage out"
            )
    pairs = zip(sources, opened, strict=True)
    return [WeightedSource(records, one.weight, one.name) for one, records in pairs]
