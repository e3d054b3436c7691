"""Modules as declarations: initialisation, stacking, abstract trees."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.layers import Linear, Mlp
from unicom_jax.core.module import (
    Module,
    ParamSpec,
    Specs,
    fan_in,
    init_params,
    iter_specs,
    jit_once,
    ones,
    stack_specs,
)


@dataclasses.dataclass(frozen=True)
class Pair(Module):
    names: tuple[str, ...]

    def specs(self) -> Specs:
        return {name: Linear(4, 3).specs() for name in self.names}


def test_a_weight_depends_only_on_the_key_and_its_own_path():
    key = jax.random.key(0)
    alone, together = Pair(("b",)).init(key), Pair(("a", "b")).init(key)
    np.testing.assert_array_equal(alone["b"]["kernel"], together["b"]["kernel"])


def test_weights_of_different_paths_and_keys_differ():
    pair = Pair(("a", "b"))
    first, second = pair.init(jax.random.key(0)), pair.init(jax.random.key(1))
    assert not np.array_equal(first["a"]["kernel"], first["b"]["kernel"])
    assert not np.array_equal(first["a"]["kernel"], second["a"]["kernel"])


def test_weights_are_the_same_in_a_program_that_is_compiled_to_run_once():
    module, key = Mlp(64, 128, 64), jax.random.key(0)
    once, often = jit_once(module.init)(key), jax.jit(module.init)(key)
    chex.assert_trees_all_close(once, often, rtol=1e-6, atol=1e-7)


def test_a_program_that_runs_once_may_be_a_part_of_another():
    module = Mlp(4, 8, 3)
    shapes = jax.eval_shape(lambda: jit_once(module.init)(jax.random.key(0)))
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, module.abstract())


def test_the_abstract_tree_is_the_tree_of_init():
    module = Mlp(4, 8, 3)
    params = module.init(jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(module.abstract(), params)


def test_param_count_counts_every_element():
    module = Mlp(4, 8, 3)
    leaves = jax.tree.leaves(module.init(jax.random.key(0)))
    assert module.param_count() == sum(x.size for x in leaves) == 4 * 8 + 8 + 8 * 3 + 3


def test_stacking_adds_a_named_leading_axis_to_every_weight():
    stacked = dict(iter_specs(stack_specs(Mlp(4, 8, 3).specs(), 5)))
    single = dict(iter_specs(Mlp(4, 8, 3).specs()))
    for path, spec in single.items():
        assert stacked[path].shape == (5, *spec.shape)
        assert stacked[path].axes == ("layers", *spec.axes)
        assert stacked[path].dtype == spec.dtype


def test_stacked_layers_start_different_and_at_the_scale_of_a_single_one():
    kernel = init_params(stack_specs({"kernel": ParamSpec((64, 64), (None, None))}, 3), _KEY)
    kernel = kernel["kernel"]
    assert not np.array_equal(kernel[0], kernel[1])
    np.testing.assert_allclose(np.std(kernel, axis=(1, 2)), 1 / 8, rtol=0.1)


def test_fan_in_gives_unit_variance_outputs():
    kernel = fan_in()(_KEY, (400, 300), jnp.float32)
    np.testing.assert_allclose(np.std(kernel), 400**-0.5, rtol=0.02)


def test_a_spec_needs_one_axis_per_dimension():
    with pytest.raises(ValueError, match="one logical axis"):
        ParamSpec((3, 4), ("embed",), ones)


def test_a_module_without_specs_says_its_name():
    with pytest.raises(NotImplementedError, match="Module declares no weights"):
        Module().param_count()


_KEY = jax.random.key(7)
