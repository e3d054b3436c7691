"""Floating-point operations of one instruction of a compiled program, two per multiply-add."""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from unicom_jax.parallel.plan.hlo import Array, Computation, Instruction

# The costs that a Pallas kernel states, since its code is opaque: on TPU its `pl.CostEstimate`, for
# Triton our own `metadata`, as JSON with \\22 for a quote.
KERNEL = re.compile(
    r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"'
    r'|serialized_metadata = "\{\\22flops\\22: \\22(\d+)\\22, \\22bytes_accessed\\22: \\22(\d+)'
)
CUDNN = re.compile(r'custom_call_target="__cudnn\$conv(BackwardInput|BackwardFilter)?')
LIBRARY = re.compile(r"cublas\$[\w$]*matmul|cublas\$gemm|onednn\$matmul")


def product_flops(where: Computation, one: Instruction) -> float:
    """Operations of a matrix product, a convolution or a kernel; 0 for all else."""
    if one.opcode == "dot":
        return _dot(where, one)
    if one.opcode == "convolution":
        return _convolution(where, one)
    if one.opcode == "custom-call" and LIBRARY.search(one.attributes):
        return _library_product(where, one)
    if one.opcode == "custom-call" and (found := CUDNN.search(one.attributes)):
        return _library_convolution(where, one, found[1])
    if (kernel := kernel_cost(one)) is not None:
        return kernel[0]
    return 0.0


def kernel_cost(one: Instruction) -> tuple[float, float] | None:
    """Operations and bytes of main memory that one of our kernels states."""
    if one.opcode != "custom-call" or not (found := KERNEL.search(one.attributes)):
        return None
    flops, nbytes = filter(None, found.groups())
    return float(flops), float(nbytes)


def _sides(where: Computation, one: Instruction) -> tuple[Array, Array]:
    left, right = (next(where.arrays((name,))) for name in one.operands[:2])
    return left, right


def _dot(where: Computation, one: Instruction) -> float:
    left, _ = _sides(where, one)
    contracted = math.prod(left.shape[axis] for axis in one.numbers("lhs_contracting_dims"))
    return 2.0 * one.outputs[0].size * contracted


def _library_product(where: Computation, one: Instruction) -> float:
    """A product that XLA hands to cuBLAS or oneDNN; the backend's text has its dimensions."""
    left, right = _sides(where, one)
    found = re.search(r'lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes)
    if found is None:  # plain matrices: M K · K N = M N
        return 2.0 * math.sqrt(left.size * right.size * one.outputs[0].size)
    axes = [int(axis) for axis in re.findall(r"\d+", found[1])]
    return 2.0 * one.outputs[0].size * math.prod(left.shape[axis] for axis in axes)


def _library_convolution(where: Computation, one: Instruction, gradient: str | None) -> float:
    """A convolution, or one of its gradients, that XLA hands to cuDNN; padding is counted too."""
    left, right = _sides(where, one)
    out, kernel = {
        None: (one.outputs[0], right),
        "BackwardInput": (left, right),
        "BackwardFilter": (right, one.outputs[0]),
    }[gradient]
    labels = re.search(r"dim_labels=\w+_(\w+)->", one.attributes)
    return 2.0 * out.size * kernel.size / kernel.shape[labels[1].index("o")]


def _convolution(where: Computation, one: Instruction) -> float:
    """TPU programs write batched matrix products as convolutions too, with dilated windows."""
    left, right = _sides(where, one)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.attributes)
    left_dims, right_dims, out_dims = labels.groups()
    out = one.outputs[0].shape
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _window(one)))
    spatial = sum(letter.isdecimal() for letter in out_dims)

    def of(name: str, default: str) -> list[str]:
        return window[name].split("x") if name in window else [default] * spatial

    taps = 1
    for axis, (size, stride, pad, left_dilate, right_dilate) in enumerate(
        zip(
            of("size", "1"),
            of("stride", "1"),
            of("pad", "0_0"),
            of("lhs_dilate", "1"),
            of("rhs_dilate", "1"),
            strict=True,
        )  # fmt: skip
    ):
        taps *= _taps(
            left.shape[left_dims.index(str(axis))],
            out[out_dims.index(str(axis))],
            int(size),
            int(stride),
            int(pad.split("_")[0]),
            int(left_dilate),
            int(right_dilate),
        )
    features = right.shape[right_dims.index("i")]
    return 2.0 * out[out_dims.index("b")] * out[out_dims.index("f")] * features * taps


def _window(one: Instruction) -> str:
    found = re.search(r"window=\{([^}]*)\}", one.attributes)
    return found[1] if found else ""


@functools.cache
def _taps(
    inputs: int, outputs: int, size: int, stride: int, pad: int, dilate: int, spread: int
) -> int:
    """Number of (output, window) places along an axis that meet an input that is not padding."""
    if size == 1 and pad == 0 and dilate == 1 and outputs * stride <= inputs + stride - 1:
        return outputs
    window = np.arange(size) * spread - pad
    total = 0
    for first in range(0, outputs, 4096):  # bounds the memory of the comparison
        places = np.arange(first, min(first + 4096, outputs))[:, None] * stride + window
        met = (places % dilate == 0) & (places >= 0) & (places // dilate < inputs)
        total += int(met.sum())
    return total
