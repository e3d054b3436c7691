"""`unicom data prepare`: data sets as ArrayRecord files on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_pipelines.openmoji import Settings, prepare_openmoji
from data_pipelines.records import SourceError
from data_pipelines.scenes.scene import SceneConfig


def prepare(dataset: str, out: Path, package: str | None = None, size: int = 64) -> str:
    """Writes a data set to `out` and says what lies there and how to train on it.

    Args:
      dataset: a key of `DATA_SETS`.
      package: openmoji only: the npm package as a directory or .tgz; None fetches it.
      size: side of the pictures in pixels.

    Raises:
      SourceError: an option that the data set does not have, or what its own preparation raises.
    """
    return DATA_SETS[dataset](out, package, size)


def _openmoji(out: Path, package: str | None, size: int) -> str:
    prepared = prepare_openmoji(out, package, Settings(size=size))
    return (
        f"{out}: OpenMoji {prepared.version}, {prepared.train} drawings to train on and "
        f"{prepared.eval} held out, {size} x {size} pixels; train on them with "
        f"--config.data.source.kind=openmoji --config.data.source.path={out}"
    )


def _scenes(out: Path, package: str | None, size: int) -> str:
    if package is not None:
        raise SourceError("--package does nothing for scenes, which are drawn here; leave it out")
    # TFDS takes seconds to import, and only this needs it.
    from data_pipelines.scenes.tfds_builder import Scenes, ScenesBuilderConfig

    config = ScenesBuilderConfig(name=str(size), scenes=SceneConfig(sizes=((size, size),)))
    builder = Scenes(data_dir=str(out), config=config, file_format="array_record")
    builder.download_and_prepare()
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    return (
        f"{builder.data_dir}: {counts['train']} scenes to train on and {counts['test']} held out, "
        f"{size} x {size} pixels; train on them with --config.data.source.kind=tfds "
        f"--config.data.source.path={builder.data_dir} --config.data.source.eval_split=test"
    )


DATA_SETS: dict[str, Callable[[Path, str | None, int], str]] = {
    "openmoji": _openmoji,
    "scenes": _scenes,
}
