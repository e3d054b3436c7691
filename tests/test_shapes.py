"""Shapes in signatures are checked in tests: what `tests/shapes.py` and the hook promise."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

from tests.shapes import checked, jaxtyped_if_shaped
from unicom_jax.core.attention import attention
from unicom_jax.core.attention.intervals import interval_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.layers import LayerNorm
from unicom_jax.core.positions import apply_rope, rope


def mask_of(rows: int, slots: int, dtype: type = np.int32) -> MaskIntervals:
    return MaskIntervals(*np.zeros((4, rows, slots), dtype))


def test_a_shape_that_would_broadcast_unseen_is_refused():
    x, positions = jnp.ones((2, 3, 1, 4)), jnp.zeros((1, 3, 2))
    with pytest.raises(TypeCheckError, match="parameter 'cos'|return value of .*apply_rope"):
        apply_rope(x, *rope(positions, 4, 1e4))


def test_a_width_other_than_the_modules_is_refused():
    with pytest.raises(TypeCheckError, match="LayerNorm"):
        LayerNorm(8, affine=False)({}, jnp.ones((2, 4)))


def test_a_result_other_than_promised_is_refused():
    @jaxtyped(typechecker=checked)
    def twice(x: Float[Array, " N"]) -> Float[Array, " 2*N"]:
        return x

    with pytest.raises(TypeCheckError, match="return value of .*twice"):
        twice(jnp.ones(3))


def test_the_fields_of_a_container_are_checked():
    assert interval_mask(mask_of(2, 3), 4).shape == (2, 3, 4)
    with pytest.raises(TypeCheckError, match="interval_mask") as error:
        interval_mask(mask_of(2, 3, np.int64), 4)
    assert "MaskIntervals.context_start is ((2, 3), dtype('int64'))" in str(error.value.__cause__)


def test_a_function_in_whose_signature_no_shape_is_named_is_left_alone():
    def plain(x: int) -> list[int]:
        return [x]

    def shaped(x: Float[Array, " N"]) -> Float[Array, " N"]:
        return x

    def of_container(mask: MaskIntervals) -> Array:
        return mask.span_start

    decorate = jaxtyped_if_shaped(typechecker=checked)
    assert decorate(plain) is plain
    assert decorate(MaskIntervals).__init__ is MaskIntervals.__init__
    assert not hasattr(MaskIntervals.__init__, "__wrapped__")
    for function in (shaped, of_container):
        assert decorate(function).__wrapped__ is function


def test_the_packages_are_decorated_by_what_names_shapes():
    assert apply_rope.__wrapped__ is not None and interval_mask.__wrapped__ is not None
    assert not hasattr(LayerNorm.specs, "__wrapped__")


def test_numpy_arrays_pass_for_those_of_jax():
    assert rope(np.zeros((2, 3, 2)), 4, 1e4)[0].shape == (2, 3, 2)


def test_an_error_of_our_own_comes_before_that_of_the_check():
    q, k = jnp.ones((2, 3, 1, 4)), jnp.ones((2, 3, 1, 5))
    with pytest.raises(ValueError, match="one batch size and one head_dim"):
        attention(q, k, k)
