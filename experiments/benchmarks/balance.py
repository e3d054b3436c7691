"""Chunks of logits that the slowest device computes, with and without `data.balance_rows`.

    python -m experiments.benchmarks.balance

The 7B model's data are not public: documents are drawn with the pictures (972 to 1024 slots), the
mixtures and the rows of `experiments/unicom_7b.py`, and with texts of log-normal lengths, 800
tokens on average in text documents, 150 in captions that are written, 30 in answers. Nothing is
trained; the rows are packed as a run packs them. `scenes_base` is measured on its own documents.

Share of a device's chunks, mean ± standard deviation over 20 steps (88 of scenes_base). A step
takes as long as the slowest device; "average" is over devices. 20 s on two cores of an AMD EPYC:

    rows          devices  each  parts  chunks   average      as packed       balanced
    7B pretrain       64     8      1       4      0.26    0.49 ± 0.05    0.49 ± 0.05
    7B pretrain       64     8      2       4      0.29    0.51 ± 0.03    0.47 ± 0.05
    7B pretrain      128     4      1       4      0.29    0.60 ± 0.12    0.50 ± 0.00
    7B pretrain      128     4      1       8      0.21    0.57 ± 0.09    0.39 ± 0.04
    7B pretrain      128     4      2       4      0.31    0.82 ± 0.08    0.51 ± 0.04
    7B pretrain      256     2      1       4      0.30    0.91 ± 0.12    0.55 ± 0.10
    7B pretrain      512     1      1       4      0.31    1.00 ± 0.00    1.00 ± 0.00
    7B sft            64     8      1       4      0.25    0.25 ± 0.00    0.25 ± 0.00
    7B sft            64     8      2       4      0.25    0.36 ± 0.07    0.37 ± 0.03
    7B sft           128     4      1       4      0.25    0.44 ± 0.11    0.36 ± 0.12
    7B sft           128     4      1       8      0.14    0.35 ± 0.06    0.31 ± 0.06
    7B sft           128     4      2       4      0.26    0.54 ± 0.06    0.42 ± 0.06
    7B sft           256     2      1       4      0.26    0.60 ± 0.15    0.50 ± 0.00
    7B sft           512     1      1       4      0.26    0.99 ± 0.05    0.99 ± 0.05
    scenes_base        1     4      1       4      0.25    0.25 ± 0.00    0.25 ± 0.00
    scenes_base        2     2      1       4      0.25    0.25 ± 0.03    0.25 ± 0.00
    scenes_base        4     1      1       4      0.26    0.29 ± 0.09    0.29 ± 0.09

With eight rows per device, a window of eight rows has no better order; 7B pretrain on 64 devices
goes from 0.51 to 0.40 at `window_rows=16` and from 0.60 to 0.30 at 32. With one row per device no
order helps. `assign` could spread text over rows instead, but then windows take 3% fewer documents,
which costs more than the chunks do: the head has 6% of the operations at 7B. The slots that predict
cannot be packed into fewer chunks either: the loss already takes them first, in whichever rows they
are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines import build
from data_pipelines.sequences.packing import (
    PackingConfig,
    assign,
    balanced,
    documents_per_window,
)
from experiments import scenes_base, unicom_7b

STEPS = 20
PROBES = 384
MARKS = 8  # slots of a turn's marks
PICTURES = (972, 988, 1000, 1008, 1024)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What packing and the head need to know of a document."""

    slots: int
    images: int
    draws: int
    predicted: int

    @property
    def size(self) -> tuple[int, int, int]:
        return self.slots, self.images, self.draws


def drawn_sizes(task: str, rng: np.random.Generator) -> Sizes:
    """A document of `unicom_7b`."""

    def words(mean: float, spread: float = 0.6) -> int:
        return int(np.clip(rng.lognormal(np.log(mean) - spread**2 / 2, spread), 4, 4000))

    def slots(pictures: int, text: int) -> int:
        return int(sum(rng.choice(PICTURES, pictures))) + text + MARKS

    if task == "text":
        written = words(800, 0.9)
        return Sizes(written + 2, 0, 0, written + 1)
    pictures, draws, prompt, written = {
        "text_to_image": (1, 1, words(80), 0),
        "image_to_text": (1, 0, 10, words(150)),
        "visual_qa": (1, 0, 25, words(30, 0.9)),
        "edit": (2, 1, 25, 0),
        "several_images": (2, 0, 25, words(30, 0.9)),
        "think_then_draw": (1, 1, 80, words(150)),
        "interleaved": (3, 2, 100, words(30, 0.9)),  # two are drawn, one of them is then edited
    }[task]
    held = min(pictures, 2)
    return Sizes(slots(pictures, prompt + written), held, draws, written + 1 + (draws > 1))


def in_turns(weights: dict[str, float], rng: np.random.Generator) -> Iterator[Sizes]:
    """Documents of a mixture, spread evenly as `mixture.Mixture` spreads them."""
    names = list(weights)
    counts = np.round(np.array(list(weights.values())) / sum(weights.values()) * 1000).astype(int)
    while True:
        tasks = np.repeat(np.arange(len(counts)), counts)
        before = np.concatenate([np.arange(count) for count in counts])
        for task in tasks[np.argsort((before + rng.random(len(tasks))) / counts[tasks])]:
            yield drawn_sizes(names[task], rng)


def predicted_slots(documents: Iterator[Sizes], packing: PackingConfig, windows: int) -> np.ndarray:
    """Slots that predict a token, of every row of every window (windows, rows)."""
    probes = [next(documents) for _ in range(PROBES)]
    count = documents_per_window([probe.size for probe in probes], packing)
    found = []
    for _ in range(windows):
        window = [next(documents) for _ in range(count)]
        rows, _ = assign([document.size for document in window], packing)
        found.append([sum(window[i].predicted for i in row) for row in rows])
    return np.array(found)


def chunks_run(rows: np.ndarray, slots: int, devices: int, parts: int, chunks: int) -> np.ndarray:
    """Share of its chunks that each device runs (steps, parts, devices).

    Args:
      rows: predicted slots of the rows of every batch (steps, batch).
      parts: of a batch, as `training.step.in_parts` takes them.
    """
    own = rows.reshape(len(rows), devices, -1)
    each = np.stack([own[:, :, part::parts].sum(-1) for part in range(parts)], 1)
    chunk = -(-own.shape[2] // parts * slots // chunks)
    return np.ceil(each / chunk) / chunks


def compare(
    name: str, rows: np.ndarray, packing: PackingConfig, batch: int, cases: Sequence[tuple]
) -> None:
    ordered = np.array([row[balanced(row.tolist())] for row in rows])
    for devices, parts, chunks in cases:
        measure = functools.partial(
            chunks_run, slots=packing.slots, devices=devices, parts=parts, chunks=chunks
        )
        as_packed, in_order = (measure(x.reshape(-1, batch)) for x in (rows, ordered))
        slowest = [x.max(-1).mean(-1) for x in (as_packed, in_order)]
        columns = [f"{x.mean():.2f} ± {x.std():.2f}" for x in slowest]
        print(
            f"    {name:<12}{devices:>8}{batch // devices:>6}{parts:>7}{chunks:>8}"
            f"{as_packed.mean():>10.2f}{columns[0]:>15}{columns[1]:>15}"
        )


def main() -> None:
    print("    rows          devices  each  parts  chunks   average      as packed       balanced")
    config = unicom_7b.get_config()
    for stage in ("pretrain", "sft"):
        packing, batch = build.stage_packing(config, stage), config[stage].batch_size
        documents = in_turns(unicom_7b.mixture(stage), np.random.default_rng(0))
        rows = predicted_slots(documents, packing, STEPS * batch // packing.window_rows)
        settings = [(64, 1, 4), (64, 2, 4), (128, 1, 4), (128, 1, 8), (128, 2, 4), (256, 1, 4)]
        compare(f"7B {stage}", rows, packing, batch, [*settings, (512, 1, 4)])
    config = scenes_base.get_config()
    stream = build.document_stream(config, "pretrain", build.load_or_train_tokenizer(config, None))
    documents = (stream.document(index)[0] for index in range(2000))
    rows = predicted_slots(documents, stream.packing, 88)
    compare("scenes_base", rows, stream.packing, 4, [(1, 1, 4), (2, 1, 4), (4, 1, 4)])


if __name__ == "__main__":
    main()
