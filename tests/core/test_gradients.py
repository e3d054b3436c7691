"""Which gradient rule a product brings, and in which dtype weight gradients leave it."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from unicom_jax.core.gradients import forward_mode, weight_gradients
from unicom_jax.core.layers import Linear, Mlp, matmul
from unicom_jax.parallel.mesh import make_mesh

KEY = jax.random.key(0)
LAYER = Linear(8, 4)


def random(*shape: int, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(KEY, shape).astype(dtype)


def mesh_of(kind: str) -> AbstractMesh:
    device = AbstractDevice(
        device_kind=kind, num_cores=None, platform=kind.partition(" ")[0].lower()
    )
    return AbstractMesh((1,), ("fsdp",), axis_types=(AxisType.Auto,), abstract_device=device)


def derivative(params, x, direction):
    return jax.jvp(lambda x: LAYER(params, x), (x,), (direction,))


def test_forward_mode_passes_through_linear_layers():
    params, x, direction = LAYER.init(KEY), random(3, 8), random(8)[None] * jnp.ones((3, 1))
    with forward_mode():
        y, moved = derivative(params, x, direction)
    np.testing.assert_allclose(y, LAYER(params, x), rtol=1e-6)
    np.testing.assert_allclose(moved, direction @ params["kernel"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["TPU v5p", "NVIDIA H100 80GB HBM3"])
def test_where_an_accelerator_is_compiled_for_forward_mode_needs_no_switch(kind):
    params, x = LAYER.abstract(), jax.ShapeDtypeStruct((3, 8), jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh_of(kind)):
        assert "custom_vjp" not in str(jax.make_jaxpr(LAYER)(params, x))
        jax.eval_shape(derivative, params, x, x)


def test_on_cpu_the_rule_stands_and_forward_mode_says_so():
    params, x = LAYER.init(KEY), random(3, 8)
    with jax.sharding.use_abstract_mesh(make_mesh("fsdp=1").abstract_mesh):
        assert "custom_vjp" in str(jax.make_jaxpr(LAYER)(params, x))
    with pytest.raises(TypeError, match="custom_vjp"):
        derivative(params, x, x)


@pytest.mark.parametrize("kind", ["cpu", "TPU v5p"])
def test_values_and_gradients_do_not_depend_on_the_rule(kind):
    x, mlp = random(3, 8), Mlp(8, 16, 4)
    params = mlp.init(KEY)

    def loss(params, x):
        with jax.sharding.use_abstract_mesh(mesh_of(kind)):
            return jnp.sum(mlp(params, x) ** 2)

    ours = jax.jit(jax.grad(loss, (0, 1)))(params, x)
    with forward_mode():
        plain = jax.jit(jax.grad(lambda p, x: jnp.sum(mlp(p, x) ** 2), (0, 1)))(params, x)
    chex.assert_trees_all_close(ours, plain, rtol=1e-5, atol=1e-6)


def products(function, *arguments) -> list:
    jaxpr = jax.make_jaxpr(function)(*arguments)
    assert "transpose" not in str(jaxpr)
    return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]


def test_the_gradient_of_the_input_contracts_the_kernel_in_its_stored_layout():
    """A transposed kernel would be gathered over devices once more."""
    x, kernel = random(3, 8), random(8, 4)
    *_, of_input = products(jax.grad(lambda x: matmul(x, kernel).sum()), x)
    ((_, contracted), _), out = of_input.params["dimension_numbers"], of_input.outvars[0]
    assert contracted == (1,) and out.aval.shape == x.shape


@pytest.mark.parametrize(("choice", "dtype"), [("compute", "bfloat16"), ("float32", "float32")])
@pytest.mark.parametrize("kind", ["cpu", "TPU v5p"])
def test_weight_gradients_leave_a_bf16_product_in_the_dtype_that_is_asked_for(choice, dtype, kind):
    x, kernel = random(3, 8, dtype=jnp.bfloat16), random(8, 4)

    def gradient(kernel):
        with jax.sharding.use_abstract_mesh(mesh_of(kind)), weight_gradients(choice):
            return jax.grad(lambda kernel: matmul(x, kernel).astype(jnp.float32).sum())(kernel)

    jaxpr = jax.make_jaxpr(gradient)(kernel)
    assert gradient(kernel).dtype == jnp.float32
    found = [eqn.outvars[0].aval for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert [product.dtype for product in found if sorted(product.shape) == [4, 8]] == [dtype]


def test_an_unknown_dtype_of_gradients_is_refused():
    with pytest.raises(ValueError, match="gradient_dtype='bf16' is not one of compute, float32"):
        weight_gradients("bf16").__enter__()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_of_fp32_are_fp32_on_every_platform(dtype):
    x, kernel = random(3, 8, dtype=dtype), random(8, 4)
    for eqn in products(jax.grad(lambda x, k: matmul(x, k).sum(), (0, 1)), x, kernel):
        highest = eqn.params["precision"] is not None
        assert highest == (dtype == jnp.float32)
