"""Pipelines from a configuration: which source, which tokenizer, which batches a stage gets.

`stage` is the name of a stage's settings in the configuration. `seed` decides the order of its
training documents; by default it is that of the configuration. What is held out is always read in
the same order, so that losses of several stages can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.faults import SourceError
from data_pipelines.images import ImagePolicy
from data_pipelines.loading.loader import (
    Loader,
    LoaderConfig,
    choose_window_documents,
    make_loader,
)
from data_pipelines.loading.pictures import PictureConfig, make_picture_loader
from data_pipelines.loading.rows import open_rows, recorded
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.mixture import DocumentStream, mixture_of
from data_pipelines.sequences.packing import PackingConfig
from data_pipelines.sequences.tasks import BRIEFLY, IN_DETAIL
from data_pipelines.sequences.tokenizer import (
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
    with_token,
)
from data_pipelines.sources.cache import CachedSource
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.identity import Identity, folder_identity, records_identity
from data_pipelines.sources.records import find_records
from data_pipelines.sources.registry import KINDS, Source, open_source
from data_pipelines.sources.split import EVALUATION, TRAIN
from data_pipelines.sources.tfds import record_files

Config = Mapping[str, Any]

NEEDS_EDITS = ("edit", "interleaved")
EVALUATION_SEED = 1_000_003  # added to the seed: held-out scenes are another draw
TOKENIZER_EXAMPLES = 3000
PATHS = ("path", "paths", "name")  # options of a source that say where its data are

# Options of data.source: the kinds of source that read them, and the value that stands for unset.
SOURCE_KEYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "path": (("array_record", "folder", "openmoji", "tfds"), ""),
    "held_out": (("array_record", "folder"), 0.05),
    "split": (("tfds",), "train"),
    "eval_split": (("tfds",), ""),
    "image": (("tfds",), "image"),
    "captions": (("tfds",), ""),
}


def source_options(config: Config, split: str, with_edits: bool) -> dict[str, Any]:
    """Arguments of `open_source` for a split.

    Scenes are split by seed, OpenMoji by file, folders and records by `held_out`, TFDS by name.

    Raises:
      SourceError: an option is set that the configured kind does not read.
    """
    source, kind = config["data"]["source"], config["data"]["source"]["kind"]
    _check_source(source, kind)
    evaluation = split == EVALUATION
    arguments = {
        "scenes": lambda: {
            "seed": config["seed"] + EVALUATION_SEED * evaluation,
            "size": source["size"],
            "scene": config["data"]["scenes"],
            "with_edits": with_edits,
        },
        "openmoji": lambda: {"path": source["path"], "split": split},
        "array_record": lambda: {
            "paths": source["path"],
            "split": split,
            "held_out": source["held_out"],
        },
        "folder": lambda: {
            "path": source["path"],
            "split": split,
            "held_out": source["held_out"],
        },
        "tfds": lambda: {
            "name": source["path"],
            "split": (evaluation and source["eval_split"]) or source["split"],
            "image": source["image"],
            "captions": source["captions"] or None,
        },
    }
    return {"kind": kind, **arguments.get(kind, dict)()}


def _check_source(source: Config, kind: str) -> None:
    for key, (kinds, unset) in SOURCE_KEYS.items():
        if kind in KINDS and kind not in kinds and source[key] != unset:
            raise SourceError(
                f"data.source.{key}={source[key]!r} does nothing for kind {kind!r}, only for "
                f"{', '.join(kinds)}: set it to {unset!r}, or choose another data.source.kind"
            )


def evaluates_on_training_data(config: Config) -> bool:
    """Whether the configuration keeps nothing from training to evaluate on."""
    source = config["data"]["source"]
    if source["kind"] == "tfds":
        return source["eval_split"] in ("", source["split"])
    return source["kind"] in ("array_record", "folder") and source["held_out"] == 0


def open_examples(
    config: Config, split: str = TRAIN, *, with_edits: bool = False, skip_broken: bool = True
) -> Source:
    """The examples of a split, kept in memory as far as `data.cache_mb` allows.

    A broken record raises where `skip_broken` is False: loaders skip them too, but count them.
    """
    options = source_options(config, split, with_edits)
    source = open_source({**options, "skip_broken": skip_broken})
    return CachedSource(source, config["data"]["cache_mb"] * 2**20)


def image_policy(config: Config) -> ImagePolicy:
    data = config["data"]
    return ImagePolicy(data["policy"], data["image_size"], data["max_tokens"], data["bucket_step"])


def grid_unit(config: Config) -> int:
    """Patches by which the sides of every picture's patch grid can be divided."""
    return config["codec"]["pool"] * config["unified"]["fold"]


def sequence_config(
    config: Config,
    cfg_dropout: float = 0.0,
    noisy_copies: int = 1,
    image_dropout: float = 0.0,
) -> SequenceConfig:
    """How segments are written. Dropout and several noisy copies belong to training."""
    unified, data = config["unified"], config["data"]
    return SequenceConfig(
        patch=data["patch"],
        images=image_policy(config),
        understood=data["understood_policy"],
        pool=config["codec"]["pool"],
        fold=config["unified"]["fold"],
        understanding=unified["understanding"],
        edit_source=unified["edit_source"],
        cfg_dropout=cfg_dropout,
        image_dropout=image_dropout,
        noisy_copies=noisy_copies,
        template_labels=data["template_labels"],
        image_positions=unified["image_positions"],
        unconditional=data["unconditional"],
        prompt_open=data["prompt_open"],
        prompt_close=data["prompt_close"],
        response_close=data["response_close"],
    )


def load_or_train_tokenizer(config: Config, directory: Path | None) -> Tokenizer:
    """The run's tokenizer: the one stored in `directory`, else the configured one, else the one of
    the packed rows, else a new one.

    A new one is trained on captions, questions, answers, instructions and plans of the source. It
    is stored in `directory` where one is given.
    """
    if directory is not None and (directory / "tokenizer.json").is_file():
        return load_tokenizer(directory)
    packed = config["data"]["packed"]
    given = config["data"]["tokenizer"] or (packed and Path(packed) / "tokenizer")
    if given:
        tokenizer = load_tokenizer(given, add_missing=True)
    else:
        tokenizer = train_tokenizer(_texts(config), config["data"]["vocab_size"])
    if config["data"]["unconditional"] == "masked":
        tokenizer = with_token(tokenizer, "no_mean")
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save(directory)
    return tokenizer


def _texts(config: Config) -> list[str]:
    source = open_source(source_options(config, TRAIN, with_edits=True))
    texts = [BRIEFLY, IN_DETAIL, *(f"Image {number}:" for number in (1, 2))]
    for index in range(min(len(source), TOKENIZER_EXAMPLES)):
        example = source[index]
        texts += [*example.captions, example.thought]
        texts += [words for q in example.questions for words in (q.question, q.answer)]
        texts += [edit.instruction for edit in example.edits]
    return texts


Share = tuple[int, ...] | None  # the rows of a batch that this process makes; None: all


def _loader_config(config: Config, rows: int, share: Share) -> LoaderConfig:
    data = config["data"]
    return LoaderConfig(
        rows, share, data["threads"], data["prefetch"], data["workers"], data["max_unreadable"]
    )


def stage_sequence(config: Config, stage: str) -> SequenceConfig:
    """How a stage's documents are written in training."""
    settings = config[stage]
    names = ("cfg_dropout", "noisy_copies", "image_dropout")
    return sequence_config(config, *(settings[name] for name in names))


def stage_packing(config: Config, stage: str) -> PackingConfig:
    settings = config[stage]
    return PackingConfig(
        slots=settings["sequence_length"],
        images=settings["images_per_row"],
        window_rows=settings["window_rows"],
        draws=settings["draws_per_row"],
        balance=config["data"]["balance_rows"],
    )


def stage_weights(config: Config, stage: str) -> dict[str, float]:
    """The tasks of a stage's mixture."""
    return {task: weight for task, weight in config[stage]["mixture"].items() if weight}


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
) -> DocumentStream:
    """The documents of a stage's mixture."""
    weights = stage_weights(config, stage)
    plain = open_examples(config, split, skip_broken=False)
    # Only Scenes make edits on demand; elsewhere a second source would be the same records again.
    scenes = config["data"]["source"]["kind"] == "scenes"
    edits = open_examples(config, split, with_edits=True, skip_broken=False) if scenes else plain
    return DocumentStream(
        mixture_of(
            weights,
            {task: edits if task in NEEDS_EDITS else plain for task in weights},
            order_seed(config, split, seed),
        ),
        tokenizer,
        stage_sequence(config, stage),
        stage_packing(config, stage),
        broken="skip",
        overlong=config[stage]["overlong"],
    )


def row_facts(config: Config, stage: str, *, seed: int | None = None) -> dict[str, Any]:
    """What decides a stage's packed rows, besides the tokenizer and the data at the source's path.

    Two configurations with the same facts have the same rows, bit for bit, where the same data are
    at both paths. Of a path its last part counts: data may move, but not become others.
    """
    source = source_options(config, TRAIN, with_edits=True)
    if "scene" in source:
        source["scene"] = dict(source["scene"])
    for key in source.keys() & set(PATHS):
        source["path"] = Path(source.pop(key)).name
    given = config[stage]["window_documents"]
    return {
        **({"window_documents": given} if given else {}),
        "seed": config["seed"],
        **({} if seed is None else {"stage_seed": seed}),
        "source": source,
        "mixture": stage_weights(config, stage),
        "overlong": config[stage]["overlong"],
        "sequence": recorded("sequence", stage_sequence(config, stage)),
        "packing": recorded("packing", stage_packing(config, stage)),
    }


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
    """Packed rows of the stage's mixture: from `data.packed` where it is set, else made here.

    Args:
      folder: of the stage's rows in `data.packed`; by default the stage's name.
    """
    loading = _loader_config(config, config[stage]["batch_size"], share)
    if packed := config["data"]["packed"]:
        rows = open_rows(
            Path(packed).expanduser(),
            folder or stage,
            split,
            row_facts(config, stage, seed=seed),
            tokenizer.fingerprint(),
            loading,
            order_seed(config, TRAIN, seed),
        )
        return Loader(rows, loading, start)
    stream = document_stream(config, stage, tokenizer, split, seed=seed)
    # Measured in the run's own order, so that all times that a stage is trained pack alike.
    of_training = stream if split == TRAIN and seed is None else None
    documents = window_documents(config, stage, tokenizer, of_training)
    return make_loader(stream, loading, start=start, window_documents=documents)


def window_documents(
    config: Config, stage: str, tokenizer: Tokenizer, stream: DocumentStream | None = None
) -> int:
    """Documents of a window of a stage, in both splits: the configured number, or else one measured
    on the first documents of the training split.

    Args:
      stream: those documents; None opens them.
    """
    if given := config[stage]["window_documents"]:
        return given
    return choose_window_documents(stream or document_stream(config, stage, tokenizer, TRAIN))


def data_identity(config: Config) -> tuple[Identity, FolderSource | None]:
    """What the data of the configured source look like, and their folder, if it is one.

    Scenes have no identity besides the configuration. Packed rows have a manifest that is compared.

    Raises:
      SourceError: there are no such data.
    """
    source = config["data"]["source"]
    path, folder = source["path"], None
    match source["kind"]:
        case "folder":
            folder = FolderSource(path)
            found = folder_identity(folder)
        case "array_record" | "openmoji":
            found = records_identity(find_records(path))
        case "tfds":
            found = records_identity(record_files(path))
        case _:
            found = {}
    return found, folder


def picture_loader(
    config: Config,
    stage: str,
    tokenizer: Tokenizer,
    split: str = TRAIN,
    start: int = 0,
    share: Share = None,
    *,
    seed: int | None = None,
) -> Loader:
    """Pictures with one caption each."""
    pictures = PictureConfig(
        patch=config["data"]["patch"],
        images=image_policy(config),
        pool=grid_unit(config),
        text_length=config["encoder"]["text"]["max_length"],
        captions=config["encoder"]["captions"],
    )
    return make_picture_loader(
        open_examples(config, split, skip_broken=False),
        tokenizer,
        pictures,
        _loader_config(config, config[stage]["batch_size"], share),
        seed=order_seed(config, split, seed),
        start=start,
    )
