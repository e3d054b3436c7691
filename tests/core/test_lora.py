"""LoRA: the start, the two ways to compute it, what is declared and what is refused."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.layers import Linear
from unicom_jax.core.lora import BASE, Lora, adapters, base_weights, merge
from unicom_jax.core.module import Module, complete_params, iter_specs, stack_specs
from unicom_jax.training.state import split


@dataclasses.dataclass(frozen=True)
class Stack(Module):
    """Three equal layers in a scan, and one behind them."""

    layer: Linear = Linear(4, 4, axes=("embed", "mlp"))
    output: Linear = Linear(4, 2, bias=False, axes=("embed", "vocab"))
    last: Linear = Linear(4, 3)

    def specs(self):
        return {
            "blocks": {"dense": stack_specs(self.layer.specs(), 3)},
            "last": self.last.specs(),
            "head": self.output.specs(),
        }

    def __call__(self, params, x):
        def block(x, layer):
            return x + jnp.tanh(self.layer(layer["dense"], x)), None

        return self.last(params["last"], jax.lax.scan(block, x, params["blocks"])[0])


LORA = Lora(Stack(), rank=2, alpha=6.0, targets=("blocks/.*", "last"))
X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


@functools.cache
def fresh():
    return jax.jit(LORA.init)(jax.random.key(0))


def lively():
    """Weights with adapters that have an effect."""
    params = jax.tree.map(lambda leaf: leaf, fresh())  # dictionaries of its own
    for layer in (params["blocks"]["dense"], params["last"]):
        shape = layer["lora"]["b"].shape
        layer["lora"]["b"] = jax.random.normal(jax.random.key(1), shape)
    return params


def test_a_fresh_adapter_leaves_the_output_as_it_was():
    params = fresh()
    plain = jax.jit(Stack())(base_weights(params), X)
    np.testing.assert_allclose(jax.jit(Stack())(params, X), plain, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(base_weights(params), jax.jit(Stack().init)(jax.random.key(0)))


def test_adapters_and_merged_weights_give_the_same_outputs():
    params = lively()
    apart, merged = Stack()(params, X), Stack()(merge(params), X)
    assert np.abs(apart - Stack()(base_weights(params), X)).max() > 0.1
    np.testing.assert_allclose(apart, merged, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal_structs(merge(params), Stack().abstract())


def test_a_merged_kernel_is_the_kernel_and_the_scaled_product_on_host_and_device():
    params = jax.tree.map(np.asarray, lively())
    layer = params["blocks"]["dense"]
    product = np.einsum("lir,lro->lio", layer["lora"]["a"], layer["lora"]["b"])
    host, device = merge(params), merge(lively())
    assert isinstance(host["blocks"]["dense"]["kernel"], np.ndarray)
    for merged in (host, device):
        kernel = merged["blocks"]["dense"]["kernel"]
        np.testing.assert_allclose(kernel, layer["kernel"] + 3.0 * product, rtol=1e-5, atol=1e-6)


def test_all_but_the_adapters_is_held_and_their_gradient_is_that_of_the_merged_kernel():
    trained, held = split(lively(), (BASE,))
    names = {path for path, _ in iter_specs(LORA.specs()) if path[-1] in ("a", "b")}
    assert {
        tuple(key.key for key in path) for path, _ in jax.tree.leaves_with_path(trained)
    } == names

    def loss(trained, kernel=None):
        params = {**held, "last": {**held["last"], "lora": {**held["last"]["lora"]}}}
        params["last"]["lora"] |= trained["last"]["lora"]
        params["blocks"] = {"dense": {**held["blocks"]["dense"]}}
        own = held["blocks"]["dense"]["lora"] | trained["blocks"]["dense"]["lora"]
        params["blocks"]["dense"]["lora"] = own
        if kernel is not None:
            params = base_weights(params)
            params["last"] = {**params["last"], "kernel": kernel}
            params["blocks"] = merge(lively())["blocks"]
        return jnp.sum(jnp.square(Stack()(params, X)))

    gradient = jax.jit(jax.grad(loss))(trained)["last"]["lora"]
    of_kernel = jax.jit(jax.grad(lambda kernel: loss(trained, kernel)))
    whole = of_kernel(merge(lively())["last"]["kernel"])
    own = trained["last"]["lora"]
    np.testing.assert_allclose(gradient["b"], 3.0 * own["a"].T @ whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradient["a"], 3.0 * whole @ own["b"].T, rtol=1e-4, atol=1e-4)


def test_adapters_are_split_over_devices_as_their_kernels_are():
    specs = dict(iter_specs(LORA.specs()))
    assert specs["blocks", "dense", "lora", "a"].axes == ("layers", "embed", None)
    assert specs["blocks", "dense", "lora", "b"].axes == ("layers", None, "mlp")
    assert specs["blocks", "dense", "lora", "a"].shape == (3, 4, 2)
    assert set(adapters(LORA.abstract())) == {("blocks", "dense"), ("last",)}


def test_base_weights_get_the_adapters_that_they_lack_and_keep_their_values():
    base = Stack().init(jax.random.key(5))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = complete_params(LORA.specs(), base, jax.random.key(0), lambda specs: place)
    chex.assert_trees_all_equal(base_weights(params), base)
    assert not np.any(params["last"]["lora"]["b"]) and np.all(params["last"]["lora"]["a"])
    np.testing.assert_array_equal(params["blocks"]["dense"]["lora"]["scale"], [3.0, 3.0, 3.0])


@pytest.mark.parametrize("target", ["block/.*", "head", "last/kernel", "las"])
def test_a_target_that_is_no_linear_layer_is_refused_with_those_there_are(target):
    line = f"'{target}' matches no linear layer; there are blocks/dense, last"
    with pytest.raises(ValueError, match=line.replace("*", r"\*")):
        dataclasses.replace(LORA, targets=(target,)).specs()
