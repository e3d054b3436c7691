"""Scenes through TFDS: written as ArrayRecord, read back equal, TensorFlow never imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_datasets")

ROUND_TRIP = """
import dataclasses, sys
import grain, numpy as np, tensorflow_datasets as tfds
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.scenes.source import ScenesSource
from data_pipelines.scenes.tfds_builder import Scenes, ScenesBuilderConfig, TfdsScenes

directory = sys.argv[1]
config = ScenesBuilderConfig(
    name="tiny", scenes=SceneConfig(sizes=((32, 48), (64, 64))), splits={"train": 6, "test": 2}
)
builder = Scenes(data_dir=directory, config=config, file_format="array_record")
builder.download_and_prepare()

truth = {}
for seed, size in ((0, 6), (1, 2)):
    source = ScenesSource(config.scenes, seed, size, with_edits=True)
    truth |= {source[i].key: source[i] for i in range(size)}

def check(records, size):
    source = TfdsScenes(records)
    assert len(source) == size
    for example in grain.MapDataset.source(source):
        true = truth[example.key]
        np.testing.assert_array_equal(example.image, true.image)
        for edit, true_edit in zip(example.edits, true.edits, strict=True):
            np.testing.assert_array_equal(edit.target, true_edit.target)
            assert dataclasses.replace(edit, target=0) == dataclasses.replace(true_edit, target=0)
        bare = dict(image=0, edits=())
        assert dataclasses.replace(example, **bare) == dataclasses.replace(true, **bare)

check(builder.as_data_source("train"), 6)
check(builder.as_data_source("train[:50%]"), 3)
check(tfds.builder_from_directory(builder.data_dir).as_data_source("test"), 2)
assert "tensorflow" not in sys.modules
print("equal")
"""


def test_round_trip_without_tensorflow(tmp_path):
    command = [sys.executable, "-c", ROUND_TRIP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")
