"""The index of a large data set: time to open it, memory of a host, time of a look-up.

    python -m experiments.benchmarks.index_scale --folder=/tmp/index --records=100000000

writes a synthetic index of that many records in 1000 (empty) files and opens it again. It then
holds out 5%, selects the 2% that have edits, and looks up records at random, in this process and in
worker processes that were sent the source. Memory is the proportional set size: pages that
processes share count once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pathlib
import pickle
import re
import time

import numpy as np

from data_pipelines.sources.chosen import records_with
from data_pipelines.sources.index import Index, Scan
from data_pipelines.sources.split import TRAIN, split_source
from data_pipelines.sources.traits import TRAITS

RECORD = 512  # bytes from one record to the next
WITH_EDITS = 0.02
LOOK_UPS = 20_000


class Places:
    """A source whose records are their places."""

    def __init__(self, paths: list[str], records: int) -> None:
        self.index = Index(paths, "synthetic-1", lambda path: synthetic(path, records))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> tuple[int, int, int, int]:
        return tuple(self.index[index])

    def traits(self) -> np.ndarray:
        return self.index.traits()


def synthetic(path: str, records: int) -> Scan:
    """What a scan of a file of `records` records would find."""
    rng = np.random.default_rng(int(pathlib.Path(path).stem))
    traits = (rng.random(records, np.float32) < WITH_EDITS).astype(np.uint8) * TRAITS["edits"]
    return Scan(np.arange(records + 1, dtype=np.uint64) * RECORD, traits)


def make_files(folder: pathlib.Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06d}.bin" for number in range(count)]
    for path in paths:
        path.touch()
    return [str(path) for path in paths]


def memory() -> float:
    """MiB of this process: its own, and its share of what several use."""
    text = pathlib.Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) / 1024


def look_up(source, count: int, seed: int) -> float:
    """Microseconds of a look-up at random."""
    places = np.random.default_rng(seed).integers(len(source), size=count)
    start = time.perf_counter()
    for place in places:
        source[int(place)]
    return (time.perf_counter() - start) / count * 1e6


def _work(sent: bytes, seed: int, ready, results) -> None:
    before = memory()
    sources = pickle.loads(sent)
    for source in sources:
        look_up(source, LOOK_UPS, seed)
    ready.wait()  # all have what they need in memory
    results.put(memory() - before)
    ready.wait()  # all have measured


def measure(folder: pathlib.Path, records: int, files: int, workers: int) -> dict[str, float]:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    paths, per_file = make_files(folder / "files", files), records // files
    start = time.perf_counter()
    Places(paths, per_file)
    found = {"records": per_file * files, "build_s": time.perf_counter() - start}
    before, start = memory(), time.perf_counter()
    source = Places(paths, per_file)
    found["open_s"] = time.perf_counter() - start
    train = split_source(source, TRAIN, 0.05)
    found["open_and_split_s"] = time.perf_counter() - start
    edits = records_with(train, ("edits",), train.traits(), ("image",))
    found |= {"open_split_and_choose_s": time.perf_counter() - start, "with_edits": len(edits)}
    found["memory_mib"] = memory() - before
    found["look_up_us"] = look_up(train, LOOK_UPS, 0)
    sent = pickle.dumps((train, edits))
    found["sent_to_each_worker_mb"] = len(sent) / 1e6
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(workers + 1), context.Queue()
    own = [context.Process(target=_work, args=(sent, i, ready, results)) for i in range(workers)]
    for process in own:
        process.start()
    ready.wait()
    found["memory_with_workers_mib"] = sum(results.get() for _ in own) + memory() - before
    ready.wait()
    for process in own:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--records", type=int, default=100_000_000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=4)
    args = parser.parse_args()
    found = measure(args.folder, args.records, args.files, args.workers)
    print(json.dumps({name: round(value, 2) for name, value in found.items()}, indent=2))


if __name__ == "__main__":
    main()
