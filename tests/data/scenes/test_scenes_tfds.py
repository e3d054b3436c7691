"""Scenes through TFDS: written, read back equal, trained on; TensorFlow never imported."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

pytest.importorskip("tensorflow_datasets")

ROUND_TRIP = """
import dataclasses, sys
import grain, numpy as np
from data_pipelines.batches import unified_loader
from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.scenes.source import ScenesSource
from data_pipelines.scenes.tfds_builder import Scenes, ScenesBuilderConfig
from data_pipelines.sources.tfds import TfdsSource
from tests.tiny import tiny_config

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

def check(split, size):
    source = TfdsSource(builder.data_dir, split)
    assert len(source) == size
    for example in grain.MapDataset.source(source):
        true = truth[example.key]
        np.testing.assert_array_equal(example.image, true.image)
        for edit, true_edit in zip(example.edits, true.edits, strict=True):
            np.testing.assert_array_equal(edit.target, true_edit.target)
            assert dataclasses.replace(edit, target=0) == dataclasses.replace(true_edit, target=0)
        bare = dict(image=0, edits=())
        assert dataclasses.replace(example, **bare) == dataclasses.replace(true, **bare)

check("train", 6)
check("train[:50%]", 3)
check("test", 2)

# Every task of a mixture finds what it needs.
tasks = ("text_to_image", "conversation", "edit", "think_then_draw", "interleaved")
run = tiny_config(data__policy="bucket", data__bucket_step=16, data__threads=1)
run.data.source.update(kind="tfds", path=str(builder.data_dir), eval_split="test")
run.pretrain.mixture.update({name: 0.2 * (name in tasks) for name in run.pretrain.mixture})
run.pretrain.update(sequence_length=256, images_per_row=12)
loader = unified_loader(run, "pretrain", load_or_train_tokenizer(run, None))
next(loader)
assert loader.counts["documents"] > len(tasks) and loader.counts["broken"] == 0, loader.counts
assert "tensorflow" not in sys.modules
print("equal")
"""


def test_round_trip_without_tensorflow(tmp_path):
    command = [sys.executable, "-c", ROUND_TRIP, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")


@pytest.mark.parametrize("size", [None, 64, 48])
def test_the_command_writes_scenes_of_the_usual_size_and_of_another(tmp_path, monkeypatch, size):
    from data_pipelines.preparation.prepare import prepare
    from data_pipelines.scenes.tfds_builder import Scenes

    def counted(self, **options):  # drawing 11,000 scenes takes long
        for name in ("train", "test"):
            self.info.splits[name] = types.SimpleNamespace(num_examples=3)

    monkeypatch.setattr(Scenes, "download_and_prepare", counted)
    line = prepare("scenes", tmp_path, size=size)
    assert f"/scenes/{size or 64}/1.0.0: 3 scenes to train on and 3 held out" in line
