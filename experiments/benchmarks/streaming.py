"""Memory of import and export, with a model of Qwen2.5-1.5B's sizes.

    python -m experiments.benchmarks.streaming --folder=/tmp/streaming [--dtype=F32]

Writes a Hugging Face folder of that size with random weights (tensor by tensor), imports it into a
workdir with a small encoder and codec, and exports the language model again. Each command runs in
its own process, whose peak resident memory is what `/usr/bin/time -v` calls "Maximum resident set
size"; the limit is the fp32 weights + 1.5 GiB. At the end the exported tensors are compared with
those that were imported, bit by bit.

Measured on two cores of an AMD EPYC with 24 GiB, under `/usr/bin/time -v`. The weights are 5.75 GiB
in fp32; all bits were equal:

    files   import               export               all of it
    F32     6.47 GiB (+ 0.72)    6.08 GiB (+ 0.33)    1 min 48 s
    BF16    6.39 GiB (+ 0.64)    6.96 GiB (+ 1.21)    1 min 41 s
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from experiments import quickstart
from unicom_jax.core.module import Module
from unicom_jax.families.build import build_codec, build_encoder
from unicom_jax.interop.folders import write_model
from unicom_jax.interop.layouts.description import DESCRIPTION
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.mapping import places
from unicom_jax.interop.tensors import DTYPES, open_tensors, write_tensors
from unicom_jax.interop.transfer import row_chunks
from unicom_jax.models.transformer import TRANSFORMER_SIZES

GIB = 2**30
ALLOWANCE = 1.5 * GIB
DTYPE_FLAGS = {"BF16": "bf16", "F32": "fp32"}  # of `unicom export`
SIZES = ("width", "depth", "heads", "kv_heads", "head_dim", "mlp_dim", "rope_theta", "tied_head")


def write_language_model(folder: Path, module: Module, dtype: str) -> None:
    """A folder as `save_pretrained` leaves it, with random weights."""
    layout, rng = LAYOUTS["qwen"], np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / DESCRIPTION).write_text(json.dumps(layout.describe(module)), encoding="utf-8")
    named = places(layout.table(module), module.specs())
    shapes = {name: place.shape for name, place in named.items()}
    write_tensors(
        folder,
        shapes,
        lambda name: 0.02 * rng.standard_normal(shapes[name], np.float32),
        DTYPES[dtype],
    )


def write_small_parts(folder: Path) -> None:
    """An encoder and a pair of projections with the sizes of the quickstart."""
    config = quickstart.get_config()
    codec = build_codec(config)
    parts = {
        "encoder": ("siglip", build_encoder(config).vision),
        "codec/compressor": ("projection", codec.compressor),
        "codec/decompressor": ("projection", codec.decompressor),
    }
    for name, (layout, module) in parts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_model(folder / name, LAYOUTS[layout], module, module.init(jax.random.key(0)))


def peak_memory(*command: str) -> int:
    """Runs a command; the bytes of its largest resident set."""
    process = subprocess.Popen([sys.executable, *command])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss * 1024


def same_tensors(one: Path, other: Path) -> bool:
    first, second = open_tensors(one), open_tensors(other)
    return first.facts.keys() == second.facts.keys() and all(
        np.array_equal(a, b)
        for name in first.facts
        for a, b in zip(row_chunks(first, name), row_chunks(second, name), strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new; takes 12 to 19 GB")
    parser.add_argument("--dtype", choices=("BF16", "F32"), default="BF16", help="of the files")
    parser.add_argument("--size", choices=TRANSFORMER_SIZES, default="qwen2.5-1.5b")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    given, workdir, out = (args.folder / name for name in ("given", "run", "out"))
    module = TRANSFORMER_SIZES[args.size]()
    write_language_model(given, module, args.dtype)
    write_small_parts(args.folder)
    sizes = [f"--config.unified.transformer.{name}={getattr(module, name)}" for name in SIZES]
    taken = {
        "import": peak_memory(
            *("-m", "unicom_jax.cli", "import", "--config=experiments/quickstart.py"),
            *(f"--workdir={workdir}", f"--language={given}", *sizes),
            *(f"--encoder={args.folder / 'encoder'}", f"--compressor={args.folder / 'codec'}"),
            f"--config.data.padded_vocab_size={module.vocab_size}",
        ),
        "export": peak_memory(
            *("-m", "unicom_jax.cli", "export", f"--checkpoint={workdir}", str(out)),
            *("--to=qwen2", f"--dtype={DTYPE_FLAGS[args.dtype]}"),
        ),
    }
    weights = 4 * module.param_count()
    print(f"{args.size}: {module.param_count():,} weights, {weights / GIB:.2f} GiB in fp32")
    for command, peak in taken.items():
        over = (peak - weights) / GIB
        word = "within" if peak <= weights + ALLOWANCE else "OVER"
        print(f"{command}: peak {peak / GIB:.2f} GiB = weights + {over:.2f} GiB, {word} 1.50 GiB")
    print(f"bit for bit the same: {same_tensors(given, out)}")


if __name__ == "__main__":
    main()
