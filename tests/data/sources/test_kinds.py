"""What all kinds of source with files share: how pictures are read, and how few files are open."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.decoding import encode_png, load_image
from data_pipelines.sources.records import write_records
from data_pipelines.sources.registry import open_source
from tests.data.samples import example
from tests.data.sources.formats import gray, png, write_jsonl, write_parquet, write_tar
from tests.data.sources.test_store_sources import KINDS, options, write_kind

WITH_PICTURES = tuple(kind for kind in KINDS if kind != "text")
FILES = 24  # more than a process with LIMIT descriptors can hold open
# Python itself, NumPy, pyarrow and the index take some; the last that a source may hold is 8.
SCRIPT = """
import json, resource, sys
from data_pipelines.sources import open_files
from data_pipelines.sources.registry import open_source

options, limit = json.loads(sys.argv[1]), int(sys.argv[2])
open_files.MOST_OPEN = 8
import os, pyarrow.parquet
from array_record.python import array_record_module
held = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (held + limit, held + limit))
source = open_source({**options, "skip_broken": False})
for _ in range(2):
    for index in range(len(source)):
        source[index]
print(len(source))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", [*WITH_PICTURES, "array_record"])
def test_every_kind_reads_its_pictures_as_the_configuration_says(kind, tmp_path):
    read = []

    def reader(source):
        read.append(source)
        return load_image(source)

    if kind == "array_record":
        write_records(tmp_path / "r", [example(0)])
        given = {"kind": kind, "paths": str(tmp_path)}
    else:
        name = write_kind(kind, tmp_path / "data")
        given = options(kind, f"{tmp_path / 'data'}/{name}".rstrip("/"))
    source = open_source({**given, "read": reader, "skip_broken": False})
    source[0]
    assert read


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "jsonl", "text", "array_record"])
def test_a_source_of_many_files_reads_all_with_few_open(kind, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(FILES):
        match kind:
            case "webdataset":
                files = {"a.png": png(number), "a.txt": "gray"}
                write_tar(folder / f"{number:03d}.tar", files)
            case "parquet":
                columns = {"image": [png(number)], "caption": ["gray"]}
                write_parquet(folder / f"{number:03d}.parquet", columns)
            case "jsonl":
                (folder / f"{number}.png").write_bytes(encode_png(gray(number)))
                rows = [{"image": f"{number}.png", "text": "gray"}]
                write_jsonl(folder / f"{number:03d}.jsonl", rows)
            case "text":
                (folder / f"{number:03d}.txt").write_text("a document")
            case "array_record":
                write_records(folder / f"{number:03d}", [example(number)])
    more = {"piece": 64} if kind == "text" else {}
    given = json.dumps({"kind": kind, "paths": str(folder)} | more)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, given, "20"], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{FILES}\n", done.stderr


def test_a_picture_too_large_for_its_policy_is_skipped_and_named(tmp_path, caplog):
    from data_pipelines.build import open_examples
    from tests.tiny import tiny_config

    huge = np.zeros((5800, 5800, 3), np.uint8)  # above 2^25 pixels, and 100 kB as a file
    files = {"a.png": encode_png(huge), "a.txt": "huge", "b.png": png(1), "b.txt": "small"}
    write_tar(tmp_path / "s.tar", files)
    config = tiny_config()
    source = {"kind": "webdataset", "path": str(tmp_path / "s.tar"), "held_out": 0.0}
    config.data.source.update(source)
    examples = open_examples(config)
    assert examples[0].captions == ("small",)
    assert "s.tar a: " in caplog.text and "5800 x 5800 pixels would be decoded" in caplog.text
