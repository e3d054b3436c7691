"""Scenes as a TFDS data set in ArrayRecord files, written and read without TensorFlow.

    builder = Scenes(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    source = TfdsScenes(builder.as_data_source("train"))   # or tfds.data_source("scenes", ...)

Pictures are handed to TFDS as PNG bytes: its path for arrays would import TensorFlow.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.examples import Edit, Example, Question
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.scenes.source import ScenesSource


@dataclasses.dataclass(kw_only=True)
class ScenesBuilderConfig(tfds.core.BuilderConfig):
    """One variant: the distribution of scenes, and the number of records of each split."""

    scenes: SceneConfig = SceneConfig()
    splits: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"train": 10_000, "test": 1_000}
    )


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Captioned pictures of a few flat objects, with questions, edits and a plan in words."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [ScenesBuilderConfig(name="64", description="pictures of 64 x 64 pixels")]

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        text = tfds.features.Text()
        features = {
            "key": text,
            "image": picture,
            "captions": tfds.features.Sequence(text),
            "questions": tfds.features.Sequence({"question": text, "answer": text, "kind": text}),
            "edits": tfds.features.Sequence(
                {"instruction": text, "target": picture, "kind": text, "caption": text}
            ),
            "thought": text,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        # One seed per split, so that no split repeats another's stream.
        return {
            split: self._generate_examples(seed, size)
            for seed, (split, size) in enumerate(self.builder_config.splits.items())
        }

    def _generate_examples(self, seed: int, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
        source = ScenesSource(self.builder_config.scenes, seed, size, with_edits=True)
        for index in range(size):
            yield index, to_features(source[index])


def to_features(example: Example) -> dict[str, Any]:
    """An example as the nested dictionary that TFDS encodes."""
    return {
        "key": example.key,
        "image": _png(example.image),
        "captions": list(example.captions),
        "questions": [dataclasses.asdict(question) for question in example.questions],
        "edits": [vars(edit) | {"target": _png(edit.target)} for edit in example.edits],
        "thought": example.thought,
    }


def to_example(features: Mapping[str, Any]) -> Example:
    """The inverse of `to_features`, from what a TFDS data source returns.

    There texts are bytes, and a sequence of dictionaries has become a dictionary of sequences.
    """
    questions, edits = features["questions"], features["edits"]
    return Example(
        key=features["key"].decode(),
        image=np.asarray(features["image"]),
        captions=_texts(features["captions"]),
        questions=tuple(
            map(Question, *(_texts(questions[name]) for name in ("question", "answer", "kind")))
        ),
        edits=tuple(
            map(
                Edit,
                _texts(edits["instruction"]),
                map(np.asarray, edits["target"]),
                _texts(edits["kind"]),
                _texts(edits["caption"]),
            )
        ),
        thought=features["thought"].decode(),
    )


def _texts(values: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(value.decode() for value in values)


def _png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer


@dataclasses.dataclass(frozen=True)
class TfdsScenes:
    """Examples of a prepared split, for `grain.MapDataset.source`.

    Attributes:
      records: what `as_data_source` or `tfds.data_source` returns.
    """

    records: Sequence[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        return to_example(self.records[index])
