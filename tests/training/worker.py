"""One process of a training run, as the command starts it; it notes on which rows it trains.

    python -m tests.training.worker NOTES STOP_AT SIGNAL [flags of `unicom train`]

NOTES becomes JSON: for every batch placed, {row of the global batch: checksum}, those of held-out
batches among them. Before the batch STOP_AT of those it trains on (counted from 0, -1 for never),
the process sends itself SIGNAL: SIGTERM, or SIGKILL once the checkpoints that were begun are there.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import zlib
from pathlib import Path

import jax
import numpy as np

from tests.training.toy import wait_for_saves
from unicom_jax import cli
from unicom_jax.training import held_out, loop


def main() -> int:
    path, stop_at, name, *flags = sys.argv[1:]
    notes: list[dict[int, int]] = []
    place, trained_on = loop.place_batch, itertools.count()

    def place_and_note(batch, mesh):
        placed = place(batch, mesh)
        notes.append(checksums(placed))
        Path(path).write_text(json.dumps(notes))
        return placed

    def place_note_and_stop(batch, mesh):
        placed = place_and_note(batch, mesh)
        if next(trained_on) == int(stop_at):
            if name == "SIGKILL":
                wait_for_saves()
            os.kill(os.getpid(), signal.Signals[name])
        return placed

    loop.place_batch, held_out.place_batch = place_note_and_stop, place_and_note
    sys.argv = ["unicom", "train", *flags]
    return cli.main()


def checksums(placed) -> dict[int, int]:
    """Of the rows that are on this process's devices, each by its place in the global batch."""
    sums: dict[int, int] = {}
    for leaf in jax.tree.leaves(placed):
        seen = {
            shard.index[0].start or 0: np.asarray(shard.data) for shard in leaf.addressable_shards
        }
        for start, rows in seen.items():
            for place, row in enumerate(rows, start):
                sums[place] = zlib.crc32(row.tobytes(), sums.get(place, 0))
    return sums


if __name__ == "__main__":
    sys.exit(main())
