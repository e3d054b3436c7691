"""Losses by part of a mixture, that is, by the task and the source of each token.

A batch numbers the part of each slot; the table of parts is static and small. Sums by part are
therefore a few comparisons and additions per slot, without a scatter, and need no gather of rows on
other devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Real, Shaped

Part = tuple[str, str]  # name of a source, "" where there is only one, and a task
PartTerm = tuple[Float32[Array, " P"], Real[Array, " P"]]  # sums and counts by part
BY_PART = "/parts"  # suffix of a term with a sum and a count for each part, (P,)


def membership(numbers: Int[Array, "*B"], parts: int) -> Bool[Array, "*B P"]:
    """True at the number of the part that a slot belongs to."""
    return numbers[..., None] == jnp.arange(parts)


def sum_by_part(values: Shaped[Array, "*B"], of: Bool[Array, "*#B P"]) -> Shaped[Array, " P"]:
    """The sum of the values of each part. `of`: `membership`."""
    return jnp.sum(jnp.where(of, values[..., None], 0), axis=range(values.ndim))


def part_term(
    values: Float[Array, "*B"], weights: Shaped[Array, "*B"], of: Bool[Array, "*#B P"]
) -> PartTerm:
    """Weighted sums of values by part and sums of the weights; no gradient reaches them."""
    return sum_by_part(jax.lax.stop_gradient(weights * values), of), sum_by_part(weights, of)


def named_parts(
    terms: Mapping[str, tuple[jax.Array, jax.Array]], parts: Sequence[Part]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """`terms` with each by-part term replaced by one for each task, `TERM/TASK`, and, if there are
    several sources, one for each source, `TERM/source/NAME`.

    Their order is that of `terms` and `parts`: it decides the compiled program, which has to be the
    same in every process.
    """
    groups: dict[str, list[int]] = {}
    for number, (source, task) in enumerate(parts):
        groups.setdefault(task, []).append(number)
        if source:
            groups.setdefault(f"source/{source}", []).append(number)
    named = {name: pair for name, pair in terms.items() if not name.endswith(BY_PART)}
    for name, columns in terms.items():
        if name in named:
            continue
        for group, members in groups.items():
            label = f"{name.removesuffix(BY_PART)}/{group}"
            named[label] = tuple(sum(column[n] for n in members) for column in columns)
    return named
