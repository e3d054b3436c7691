"""Scenes as a TFDS data set in ArrayRecord files, written and read without TensorFlow.

    builder = Scenes(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    source = TfdsSource(builder.data_dir)   # data_pipelines/sources/tfds.py

Pictures are passed to TFDS as PNG bytes, since its code for arrays would import TensorFlow.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.examples import Example
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


def _png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    buffer.seek(0)
    return buffer
