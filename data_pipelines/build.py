"""What a configuration says about data: which sources and tokenizer, how documents are written.

`batches` makes the batches of a stage from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.decoding import load_image, load_picture
from data_pipelines.examples import Example
from data_pipelines.faults import SourceError
from data_pipelines.images import ImagePolicy, decoded_size, most_decoded
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.packing import PackingConfig
from data_pipelines.sequences.tasks import BRIEFLY, IN_DETAIL, texts_of
from data_pipelines.sequences.tokenizer import (
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
    with_token,
)
from data_pipelines.sources.broken import SkipBroken
from data_pipelines.sources.cache import CachedSource
from data_pipelines.sources.configured import (
    ConfiguredSource,
    configured_sources,
    picture_sources,
)
from data_pipelines.sources.copies import local_folder
from data_pipelines.sources.documents import DocumentsSource
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.identity import (
    Identity,
    folder_identity,
    identity_of,
    records_identity,
)
from data_pipelines.sources.joined import Joined
from data_pipelines.sources.records import find_records
from data_pipelines.sources.registry import KINDS, UNSPLIT, Source, open_source
from data_pipelines.sources.rows import ReadImage
from data_pipelines.sources.split import EVALUATION, TRAIN
from data_pipelines.sources.tfds import record_files
from data_pipelines.sources.undecoded import PictureFile
from unicom_jax.core.paths import joined

Config = Mapping[str, Any]

EVALUATION_SEED = 1_000_003  # added to the seed: held-out scenes are a separate draw
TOKENIZER_EXAMPLES = 3000

# Options of a source: the kinds of source that read them, and the value that means "unset".
SOURCE_KEYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "path": ((*UNSPLIT, "openmoji", "tfds"), ""),
    "held_out": (UNSPLIT, 0.05),
    "split": (("datasets", "tfds"), "train"),
    "eval_split": (("datasets", "tfds"), ""),
    "subset": (("datasets",), ""),
    "revision": (("datasets",), ""),
    "image": (("datasets", "parquet", "tf_example", "tfds"), "image"),
    "captions": (("datasets", "parquet", "text", "tf_example", "tfds"), ""),
    "questions": (("datasets", "parquet"), ""),
    "images": (("conversations", "interleaved", "jsonl"), ""),
    "draw": (("interleaved",), False),
    "piece": (("text",), 0),
}
LISTED_KEYS = {"size": (("scenes",), 20_000)}  # the same, but only for an item of data.sources
BYTES_PER_TOKEN = 3  # of text, at most; decides the length of a piece of text


def source_options(
    config: Config, split: str, with_edits: bool, one: ConfiguredSource | None = None
) -> dict[str, Any]:
    """Arguments of `open_source` for a split.

    Scenes are split by seed, OpenMoji by file, TFDS by name, and all others by `held_out`, except
    that data loaded by `datasets` are split by name if `eval_split` is set.

    Args:
      one: one of the configured sources; None: that of `data.source`.

    Raises:
      SourceError: an option is set that the configured kind does not read.
    """
    source = one.options if one else config["data"]["source"]
    kind, where = source["kind"], one.key if one else "data.source"
    _check_source(source, kind, where)
    evaluation = split == EVALUATION
    named = (evaluation and source["eval_split"]) or source["split"]
    arguments = {
        "scenes": lambda: {
            "seed": config["seed"] + EVALUATION_SEED * evaluation,
            "size": source["size"],
            "scene": config["data"]["scenes"],
            "with_edits": with_edits,
        },
        "openmoji": lambda: {"path": source["path"], "split": split},
        "array_record": lambda: {"paths": source["path"]},
        "folder": lambda: {"path": source["path"]},
        **dict.fromkeys(
            ("conversations", "jsonl"),
            lambda: {"paths": source["path"], "images": source["images"]},
        ),
        "interleaved": lambda: {
            "paths": source["path"],
            **{key: source[key] for key in ("images", "draw")},
        },
        "parquet": lambda: {
            "paths": source["path"],
            **{key: source[key] for key in ("image", "captions", "questions")},
        },
        "datasets": lambda: {
            "part": named,
            **{key: source[key] for key in ("path", "subset", "revision")},
            **{key: source[key] for key in ("image", "captions", "questions")},
        },
        "documents": lambda: {"path": source["path"]},
        "pictures": lambda: {"path": source["path"]},
        "text": lambda: {
            "paths": source["path"],
            "piece": source["piece"] or BYTES_PER_TOKEN * _shortest_row(config),
            "field": source["captions"] or "text",
        },
        "tf_example": lambda: {
            "paths": source["path"],
            # "image" is the default of the other kinds, and the first name that this kind tries
            "image": "" if source["image"] == "image" else source["image"],
            "captions": source["captions"],
        },
        "webdataset": lambda: {"paths": source["path"]},
        "tfds": lambda: {
            "name": source["path"],
            "split": named,
            "image": source["image"],
            "captions": source["captions"] or None,
        },
    }
    share = 0.0 if _has_split(source) else source["held_out"]
    options = {"split": split, "held_out": share} if kind in UNSPLIT else {}
    return {"kind": kind, **arguments.get(kind, dict)(), **options}


def _has_split(source: Config) -> bool:
    """Whether the source has a separate split for evaluation."""
    return source["eval_split"] not in ("", source["split"])


def _shortest_row(config: Config) -> int:
    """Slots of the shortest rows among the stages that train on text."""
    stages = (config[name] for name in config.get("stages", ()) if name in config)
    named = any("text" in source["tasks"] for source in config["data"]["sources"])
    rows = (stage for stage in stages if "mixture" in stage)
    lengths = [stage["sequence_length"] for stage in rows if named or stage["mixture"]["text"]]
    return min(lengths, default=1024)


def _check_source(source: Config, kind: str, where: str) -> None:
    table = SOURCE_KEYS if where == "data.source" else {**SOURCE_KEYS, **LISTED_KEYS}
    for key, (kinds, unset) in table.items():
        if kind in KINDS and kind not in kinds and source[key] != unset:
            raise SourceError(
                f"{where}.{key}={source[key]!r} does nothing for kind {kind!r}, only for "
                f"{', '.join(kinds)}: set it to {unset!r}, or choose another {where}.kind"
            )
    if kind in SOURCE_KEYS["path"][0] and not source["path"]:
        raise SourceError(f"{where}.path is empty: give the data of kind {kind!r}")


def evaluates_on_training_data(config: Config) -> bool:
    """Whether the configuration holds no records of a source out of training for evaluation."""
    return any(_is_trained_on(one.options) for one in configured_sources(config))


def _is_trained_on(source: Config) -> bool:
    if source["kind"] == "tfds":
        return not _has_split(source)
    return source["kind"] in UNSPLIT and source["held_out"] == 0 and not _has_split(source)


def open_examples(
    config: Config, split: str = TRAIN, *, with_edits: bool = False, skip_broken: bool = True
) -> Sequence[Example]:
    """The captioned pictures of a split from all sources that have any, cached in memory as far as
    `data.cache_mb` allows.

    A broken record raises if `skip_broken` is False: loaders skip such records themselves, to count
    them.
    """
    sources = picture_sources(config)
    opened = [open_one(config, one, split, with_edits, len(sources)) for one in sources]
    if skip_broken:
        opened = [SkipBroken(source) for source in opened]
    return opened[0] if len(opened) == 1 else Joined(opened)


def open_one(
    config: Config,
    one: ConfiguredSource,
    split: str,
    with_edits: bool = False,
    sharers: int = 1,
    read: ReadImage | None = None,
) -> CachedSource:
    """The records of one source; a broken one raises. All sources have equal shares of
    `data.cache_mb`.

    Args:
      read: path or bytes of a picture -> what a record stores for it; None: a picture that is
        decoded on use, as the configuration requires.
    """
    source = _undecoded_source(config, one, split, with_edits, read)
    return CachedSource(source, config["data"]["cache_mb"] * 2**20 // sharers)


def _undecoded_source(
    config: Config,
    one: ConfiguredSource,
    split: str,
    with_edits: bool,
    read: ReadImage | None = None,
) -> Source:
    options = source_options(config, split, with_edits, one)
    try:
        read = read or functools.partial(PictureFile, decode=picture_reader(config, load_picture))
        return open_source({**options, "skip_broken": False, "read": read})
    except SourceError as error:
        if not one.name:
            raise
        message = str(error).replace("data.source.", f"{one.key}.")
        raise SourceError(f"{one.key} ({one.name}): {message}") from error


def image_policy(config: Config) -> ImagePolicy:
    data = config["data"]
    return ImagePolicy(data["policy"], data["image_size"], data["max_tokens"], data["bucket_step"])


def picture_reader(config: Config, load: Callable[..., Any] = load_image) -> Callable[..., Any]:
    """A reader that decodes a picture file, by `load`, no larger than the image policy needs, and
    refuses one that would take far more memory than that (`images.most_decoded`).

    With `data.decode_scale=0` only Pillow's own limit holds, as in runs from before that option.
    """
    scale, unit = config["data"]["decode_scale"], config["data"]["patch"] * grid_unit(config)
    if not scale:
        return load
    policy = image_policy(config)
    policy.target_size(1, 1, unit)  # raises where the sizes do not agree
    return functools.partial(
        load,
        smallest=functools.partial(decoded_size, policy, unit, scale),
        most=most_decoded(policy, config["data"]["patch"], grid_unit(config), scale),
    )


def grid_unit(config: Config) -> int:
    """The number of patches that divides both sides of every picture's patch grid."""
    return config["codec"]["pool"] * config["unified"]["fold"]


def sequence_config(
    config: Config,
    cfg_dropout: float = 0.0,
    noisy_copies: int = 1,
    image_dropout: float = 0.0,
) -> SequenceConfig:
    """How segments are written. Dropout and several noisy copies are for training only."""
    unified, data = config["unified"], config["data"]
    return SequenceConfig(
        patch=data["patch"],
        images=image_policy(config),
        understood=data["understood_policy"],
        pool=config["codec"]["pool"],
        fold=config["unified"]["fold"],
        understanding=unified["understanding"],
        edit_source=unified["edit_source"],
        edit_words=unified["edit_words"],
        cfg_dropout=cfg_dropout,
        image_dropout=image_dropout,
        noisy_copies=noisy_copies,
        template_labels=data["template_labels"],
        dummies=unified["pathway"] == "cheers" and unified["cheers"]["dummies"],
        image_positions=unified["image_positions"],
        unconditional=data["unconditional"],
        prompt_open=data["prompt_open"],
        prompt_close=data["prompt_close"],
        response_close=data["response_close"],
    )


def load_or_train_tokenizer(config: Config, directory: Path | None) -> Tokenizer:
    """The run's tokenizer: the one stored in `directory`, else the configured one, else that of the
    packed rows, else a new one.

    A new one is trained on captions, questions, answers, instructions and plans of the sources. It
    is stored in `directory` if one is given.
    """
    if directory is not None and (directory / "tokenizer.json").is_file():
        return load_tokenizer(directory)
    packed = config["data"]["packed"]
    given = config["data"]["tokenizer"] or (packed and joined(packed, "tokenizer"))
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
    """The texts of the first records of each source, in number proportional to its weight."""
    texts = [BRIEFLY, IN_DETAIL, *(f"Image {number}:" for number in (1, 2))]
    sources = configured_sources(config)
    whole = sum(one.weight for one in sources)
    for one in sources:
        records = SkipBroken(_undecoded_source(config, one, TRAIN, with_edits=True))
        count = max(1, round(TOKENIZER_EXAMPLES * one.weight / whole))
        for index in range(min(len(records), count)):
            texts += texts_of(records[index])
    return texts


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
        views=settings["views_per_row"],
        balance=config["data"]["balance_rows"],
        fill=config["data"]["fill_rows"],
    )


def data_identity(config: Config) -> dict[str, tuple[Identity, FolderSource | None]]:
    """The identity of the data of each configured source, and its `FolderSource` if it is one, by
    the name of the source ("" for the only one).

    Scenes have no identity beyond the configuration. Packed rows are compared by their manifest.

    Raises:
      SourceError: there are no such data.
    """
    return {one.name: _identity(config, one) for one in configured_sources(config)}


def _identity(config: Config, one: ConfiguredSource) -> tuple[Identity, FolderSource | None]:
    source, folder = one.options, None
    path = source["path"]
    match source["kind"]:
        case "folder":
            folder = FolderSource(path)
            found = folder_identity(folder)
        case "documents":
            folder = DocumentsSource(path)
            found = folder_identity(folder)
        case "array_record" | "tf_example":
            found = records_identity(find_records(path))
        case "openmoji":
            found = records_identity(find_records(local_folder(path)))
        case "tfds":
            found = records_identity(record_files(path))
        case "scenes":
            found = {}
        case _:
            options = source_options(config, TRAIN, False, one)
            found = identity_of(open_source(options | {"held_out": 0.0}).source)
    return found, folder
