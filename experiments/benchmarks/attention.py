"""The attention backends on this machine's accelerator: errors first, then times.

    python -m experiments.benchmarks.attention [--config=experiments/unicom_7b.py --stage=pretrain]
        [--rows=4] [--heads=28 --kv-heads=4 --head-dim=128] [--rounds=15]

The mask is that of rows which the configuration's stage packs (of Scenes, if its own data are not
there). Errors are relative, |found - wanted| / |wanted| in the Frobenius norm, of the output and
the gradients of q, k and v, against dense attention in fp32 on the same bf16 or fp32 inputs. Times
are of bf16, forward and forward with backward, in turns. TFLOP/s count the pairs that the mask
shows, with two products per pair forward and five backward (Dao, arXiv:2307.08691).

Peers: `jax.nn.dot_product_attention` with the mask as an array, in XLA and in cuDNN; cuDNN with a
causal mask, which is another function but shows what the hardware allows; and PyTorch's
FlexAttention with the same intervals as a block mask, where torch sees the GPU. A peer that cannot
run is listed with the reason.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.race import Contestant, Spread, race
from experiments.benchmarks.step import some_batches
from unicom_jax.config import resolve
from unicom_jax.core.attention import ATTENTION_BACKENDS, attention, interval_mask, visible_share
from unicom_jax.core.batch import MaskIntervals

FORWARD, BACKWARD = 2, 5  # products per pair of slots
REPEATS = 5  # calls that are timed together, so that starting them does not count
Pass = Callable[..., object]


def with_gradients(function: Pass) -> Pass:
    """(q, k, v, gradient) -> output and gradients of q, k, v."""

    def run(q, k, v, gradient):
        out, back = jax.vjp(function, q, k, v)
        return out, *back(gradient)

    return run


def inputs(rows: int, slots: int, heads: int, kv_heads: int, dim: int, dtype) -> list[jax.Array]:
    """q, k, v and a gradient of the output."""
    shapes = [(rows, slots, n, dim) for n in (heads, kv_heads, kv_heads, heads)]
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def errors(arrays: list[jax.Array], mask: MaskIntervals, backend: str) -> list[float]:
    """Relative errors of the output and the three gradients."""
    found = jax.jit(with_gradients(partial(attention, mask=mask, backend=backend)))(*arrays)
    exact = [x.astype(jnp.float32) for x in arrays]
    with jax.default_matmul_precision("highest"):
        wanted = jax.jit(with_gradients(partial(attention, mask=mask, backend="dense")))(*exact)

    def error(found, wanted):
        found, wanted = (np.asarray(x, np.float64) for x in (found, wanted))
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    return [error(*pair) for pair in zip(found, wanted, strict=True)]


def ours_and_jax(mask: MaskIntervals, slots: int) -> dict[str, Pass]:
    """Functions of q, k, v by name."""
    visible = interval_mask(mask, slots)[:, None]
    stock = jax.nn.dot_product_attention
    return {
        **{
            f"unicom_jax, {backend}": partial(attention, mask=mask, backend=backend)
            for backend in reversed(ATTENTION_BACKENDS)
        },
        "jax.nn, xla": partial(stock, mask=visible, implementation="xla"),
        "jax.nn, cudnn, mask as an array": partial(stock, mask=visible, implementation="cudnn"),
        "jax.nn, cudnn, causal (another function)": partial(
            stock, is_causal=True, implementation="cudnn"
        ),
    }


def contestants(
    functions: dict[str, Pass], arrays: list[jax.Array]
) -> tuple[list[Contestant], list[str]]:
    """Each function forward, and with gradients, compiled; and why some cannot take part."""
    able, notes = [], []
    for name, function in functions.items():
        forward, both = jax.jit(function), jax.jit(with_gradients(function))
        try:
            jax.block_until_ready((forward(*arrays[:3]), both(*arrays)))
        except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, NotImplementedError) as error:
            notes.append(f"{name}: {str(error).strip().splitlines()[0][:160]}")
            continue
        able.append(Contestant(name, partial(repeated, forward, arrays[:3]), 0))
        able.append(Contestant(name, partial(repeated, both, arrays), 0))
    return able, notes


def repeated(function: Pass, arrays: list[jax.Array]) -> None:
    jax.block_until_ready([function(*arrays) for _ in range(REPEATS)][-1])


def flex_attention(
    mask: MaskIntervals, arrays: list[jax.Array]
) -> tuple[list[Contestant], list[str]]:
    """PyTorch's FlexAttention, compiled, on the same numbers."""
    name = "torch, FlexAttention"
    try:
        import torch
        from torch.nn.attention.flex_attention import create_block_mask
        from torch.nn.attention.flex_attention import flex_attention as flex
    except ImportError as error:
        return [], [f"{name}: {error}"]
    if not torch.cuda.is_available():
        return [], [f"{name}: torch sees no GPU"]

    def given(x, dtype) -> torch.Tensor:
        return torch.tensor(np.asarray(x, np.float32)).to("cuda", dtype)

    q, k, v, gradient = (given(x.swapaxes(1, 2), torch.bfloat16) for x in arrays)
    bounds = [given(x, torch.int32) for x in jax.tree.leaves(mask)]

    def visible(b, h, i, j):
        start, stop, first, last = (bound[b, i] for bound in bounds)
        return ((start <= j) & (j < stop)) | ((first <= j) & (j < last))

    slots = q.shape[2]
    blocks = create_block_mask(visible, len(q), None, slots, slots, device="cuda")
    compiled = torch.compile(partial(flex, block_mask=blocks, enable_gqa=True))
    learned = [x.requires_grad_() for x in (q, k, v)]

    def forward() -> None:
        with torch.no_grad():
            for _ in range(REPEATS):
                compiled(q, k, v)
        torch.cuda.synchronize()

    def both() -> None:
        for _ in range(REPEATS):
            torch.autograd.grad(compiled(q, k, v), learned, gradient)
        torch.cuda.synchronize()

    try:
        forward(), both()
    except Exception as error:  # a compiler of another package: any error means that it is absent
        return [], [f"{name}: {str(error).strip().splitlines()[0][:160]}"]
    return [Contestant(name, forward, 0), Contestant(name, both, 0)], []


def error_table(mask: MaskIntervals, slots: int, sizes: tuple[int, int, int]) -> Table:
    """`sizes`: heads, key heads and channels of a head."""
    table = Table(title="relative errors against dense attention in fp32")
    for column in ("", "dtype", "output", "dq", "dk", "dv"):
        table.add_column(column, no_wrap=True)
    for dtype in (jnp.float32, jnp.bfloat16):
        arrays = inputs(1, slots, *sizes, dtype)
        for backend in reversed(ATTENTION_BACKENDS):
            found = errors(arrays, mask, backend)
            table.add_row(backend, jnp.dtype(dtype).name, *(f"{error:.1e}" for error in found))
    return table


def time_table(able: list[Contestant], seconds: np.ndarray, pairs: float, dim: int) -> Table:
    """`pairs`: visible pairs of slots, over all rows and heads."""
    table = Table(title="bf16, median \\[quartiles] of rounds in turns")
    table.add_column("", no_wrap=True)
    for column in ("forward, ms", "TFLOP/s", "with backward, ms", "TFLOP/s", "first ÷ this"):
        table.add_column(column, justify="right", no_wrap=True)
    seconds = seconds / REPEATS
    for i in range(0, len(able), 2):
        row = [able[i].name]
        for column, products in ((i, FORWARD), (i + 1, FORWARD + BACKWARD)):
            time = Spread.of(seconds[:, column] * 1e3)
            row.append(f"{time.median:.2f} [{time.low:.2f}, {time.high:.2f}]")
            row.append(f"{2 * products * dim * pairs / time.median / 1e9:.0f}")
        row.append(f"{Spread.of(seconds[:, 1] / seconds[:, i + 1]).median:.2f}")
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.attention")
    parser.add_argument("--config", default="experiments/unicom_7b.py")
    parser.add_argument("--stage", default="pretrain")
    for name, value in {"rows": 4, "heads": 28, "kv-heads": 4, "head-dim": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, 140)
    config = resolve(options.config, [f"--config.{options.stage}.batch_size={options.rows}"])
    config[options.stage].window_rows = options.rows
    (batch,), data = some_batches(config, options.stage, 1)
    mask = jax.tree.map(lambda x: jnp.asarray(x[: options.rows]), batch.mask)
    rows, slots = mask.context_start.shape
    share = float(visible_share(mask, slots))
    sizes = (options.heads, options.kv_heads, options.head_dim)
    device = jax.devices()[0].device_kind
    console.print(
        f"{device}: {rows} rows of {slots} slots of {data}, {sizes[0]} heads over {sizes[1]} of "
        f"{sizes[2]}; {share:.0%} of the pairs are visible; load average {os.getloadavg()[0]:.1f}"
    )
    console.print(error_table(jax.tree.map(lambda x: x[:1], mask), slots, sizes))
    arrays = inputs(rows, slots, *sizes, jnp.bfloat16)
    able, notes = contestants(ours_and_jax(mask, slots), arrays)
    peers, more = flex_attention(mask, arrays)
    able += peers
    seconds = race(able, options.rounds)
    console.print(time_table(able, seconds, share * rows * slots**2 * sizes[0], sizes[2]))
    for line in notes + more:
        console.print(line, markup=False)


if __name__ == "__main__":
    main()
