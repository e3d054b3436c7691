"""How a product is computed, and how much longer it takes than with bfloat16 factors.

A TPU multiplies only bfloat16 numbers. An fp32 factor is split into pieces with 8 bits of mantissa,
which are multiplied with each other, except that the smallest products are left out: one pass by
default, three for `Precision.HIGH` (2 x 2 pieces), six for HIGHEST (3 x 3). An NVIDIA GPU has units
for TF32; for HIGHEST it computes in full fp32 outside its tensor cores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax.extend.core import JaxprEqn

from unicom_jax.parallel.accelerators import Accelerator
from unicom_jax.parallel.plan.hlo import Computation, Instruction

DEFAULT, HIGH, HIGHEST = "default", "high", "highest"
HALVES = {"bf16", "f16", "bfloat16", "float16"}  # XLA's names and NumPy's
PIECES = {DEFAULT: 1, HIGH: 2, HIGHEST: 3}
# Names of cuBLAS algorithms that a program may request; all others follow the precision.
ALGORITHMS = {"F32_F32_F32": HIGHEST, "TF32_TF32_F32": DEFAULT}
_LISTED = re.compile(r"operand_precision=\{(\w+)")
_OF_LIBRARY = re.compile(r'"operand_precision":\["(\w+)"')
_ALGORITHM = re.compile(r"\bALG_DOT_(\w+)")


class Arithmetic(NamedTuple):
    """Attributes:
    left, right: whether that factor is fp32; else it has 16 bits or fewer.
    precision: "default", "high" or "highest"; without an fp32 factor it makes no difference.
    """

    left: bool = False
    right: bool = False
    precision: str = DEFAULT


def arithmetic_of(where: Computation, one: Instruction, kernel: bool) -> Arithmetic:
    """The arithmetic of a product in a compiled program.

    Args:
      kernel: whether it is one of our own kernels.
    """
    if kernel:
        return _of_kernel(array.dtype for array in where.arrays(one.operands))
    factors = [next(where.arrays((name,))) for name in one.operands[:2]]
    left, right = (array.dtype in ("f32", "f64") for array in factors)
    if not (left or right):
        return Arithmetic()
    return Arithmetic(left, right, _precision(one.attributes))


def _precision(attributes: str) -> str:
    if (found := _ALGORITHM.search(attributes)) and found[1] in ALGORITHMS:
        return ALGORITHMS[found[1]]
    found = _LISTED.search(attributes) or _OF_LIBRARY.search(attributes)
    return found[1].lower() if found else DEFAULT


def traced_arithmetic(eqn: JaxprEqn) -> Arithmetic:
    """The arithmetic of a product or kernel in a program that JAX traced."""
    factors = [variable.aval.dtype for variable in eqn.invars]
    if "precision" not in eqn.params:
        return _of_kernel(str(dtype) for dtype in factors)
    wide = [dtype.itemsize > 2 for dtype in factors[:2]]
    chosen = eqn.params["precision"]
    one = chosen[0] if isinstance(chosen, tuple) else chosen
    name = one.name.lower() if isinstance(one, jax.lax.Precision) else DEFAULT
    return Arithmetic(*wide, name) if any(wide) else Arithmetic()


def _of_kernel(dtypes: Iterable[str]) -> Arithmetic:
    """Our kernels compute in fp32, with `HIGHEST` precision, if no input array has 16 bits
    (`core/attention/kernel_parts.py`)."""
    wide = HALVES.isdisjoint(dtypes)
    return Arithmetic(wide, wide, HIGHEST) if wide else Arithmetic()


def slowdown(how: Arithmetic, accelerator: Accelerator) -> float:
    """How much longer a product takes than one of bfloat16 factors."""
    if not (how.left or how.right):
        return 1.0
    if accelerator.torus:
        most = PIECES[how.precision]
        left, right = (most if wide else 1 for wide in how[:2])
        kept = max(left, right)
        return float(sum(a + b < kept for a in range(left) for b in range(right)))
    # A GPU multiplies both factors in the wider type.
    return accelerator.flops / (accelerator.fp32 if how.precision == HIGHEST else accelerator.tf32)
