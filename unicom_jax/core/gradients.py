"""How weight gradients are computed: choices that hold while a loss is traced.

with weight_gradients("float32"):
    loss, gradients = jax.value_and_grad(...)(...)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax
import jax.numpy as jnp

COMPUTE, FLOAT32 = "compute", "float32"
DTYPES = (COMPUTE, FLOAT32)

_dtype: ContextVar[str] = ContextVar("dtype of weight gradients", default=COMPUTE)
_plain: ContextVar[bool] = ContextVar("products without a gradient rule", default=False)


@contextlib.contextmanager
def weight_gradients(dtype: str) -> Iterator[None]:
    """Sets the dtype in which weight gradients leave their products and are summed over devices.

    "compute" (the default): the dtype of the activations. In bfloat16 each device rounds its part
    of a gradient once before the parts are summed; the sum is kept and applied in fp32. "float32":
    no rounding, for twice the bytes between devices. Either way, a device sums over its own slots
    in fp32.

    Raises:
      ValueError: another name.
    """
    if dtype not in DTYPES:
        raise ValueError(f"gradient_dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    token = _dtype.set(dtype)
    try:
        yield
    finally:
        _dtype.reset(token)


def gradient_dtype(compute: jnp.dtype) -> jnp.dtype:
    """The dtype in which weight gradients leave a product that is computed in `compute`."""
    return jnp.dtype(compute if _dtype.get() == COMPUTE else jnp.float32)


@contextlib.contextmanager
def forward_mode() -> Iterator[None]:
    """Traces products without a gradient rule of their own, so that `jax.jvp` passes through.

    On TPU and GPU they have none anyway, unless `weight_gradients("float32")` asks for the rule.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def needs_rule(same_dtype: bool) -> bool:
    """Whether `core.layers.matmul` brings its own gradient rule. Asked while a product is traced.

    Args:
      same_dtype: whether the product is accumulated in the dtype of its factors. If not, JAX would
        multiply its gradient with them in the wider dtype.
    """
    if _plain.get():
        return False
    return not same_dtype or _dtype.get() != COMPUTE or _compiles_for_cpu()


def _compiles_for_cpu() -> bool:
    """By the devices of the current mesh, which need not be present; else by JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.default_backend() if device is None else device.device_kind
    return kind == "cpu"
