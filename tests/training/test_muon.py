"""Muon is that of optax, on one device and on several, without gathering what it works on."""

from __future__ import annotations

import json
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.muon import LEARNING_RATE, contestants
from tests.parallel.programs import on_eight_devices
from tests.training.eight_devices import Tower
from unicom_jax.core.module import ParamSpec
from unicom_jax.training.muon import is_kernel, newton_schulz

pytestmark = pytest.mark.optimized  # `both` is compared to the last bits
QUICK = ("fsdp=4,tensor=2", "slice=2,fsdp=2,tensor=2")
MORE = ("fsdp=8", "data=8", "tensor=8", "fsdp=2,tensor=4", "data=2,fsdp=4")
MESHES = [*QUICK, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in MORE)]


@cache
def facts(group: tuple[str, ...]) -> dict:
    """Of `tests.training.eight_devices`, by mesh."""
    return json.loads(on_eight_devices("-m", "tests.training.eight_devices", *group).stdout)


@pytest.fixture(params=MESHES)
def on_mesh(request) -> dict:
    group = QUICK if request.param in QUICK else MORE
    return facts(group)[request.param]


# ---- one device ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both():
    """Three updates of ours and of optax, and the states after them."""
    rng, shapes, found = np.random.default_rng(0), Tower().abstract(), []
    grads = [
        jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
        for _ in range(3)
    ]
    for optimizer in contestants(Tower().specs()).values():
        update, state, updates = jax.jit(optimizer.update), optimizer.init(grads[0]), []
        for grad in grads:
            out, state = update(grad, state, grad)
            updates.append(out)
        found.append((updates, state))
    return found


def test_updates_are_those_of_optax(both):
    (ours, _), (theirs, _) = both
    chex.assert_trees_all_close(ours, theirs, rtol=0, atol=1e-6 * LEARNING_RATE)


def test_the_state_is_that_of_optax_so_that_its_checkpoints_can_be_resumed(both):
    (_, ours), (_, theirs) = both
    chex.assert_trees_all_close(ours, theirs, rtol=1e-6)


def test_matrices_of_zeros_stay_zero():
    np.testing.assert_array_equal(newton_schulz(jnp.zeros((2, 3, 4)), 1e-8), 0)


def test_singular_values_come_close_to_one():
    matrices = np.random.default_rng(0).standard_normal((2, 6, 9)).astype(np.float32)
    values = np.linalg.svd(newton_schulz(matrices, 1e-8), compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (("embed", "mlp"), True),
        (("layers", "mlp", "embed"), True),
        (("vocab", "embed"), False),
        (("layers", "embed"), False),
        ((None, None, "embed"), False),
    ],
)
def test_linear_kernels_go_to_muon_and_nothing_else(axes, expected):
    assert is_kernel(ParamSpec((2,) * len(axes), axes)) is expected


# ---- eight devices ------------------------------------------------------------------------


def test_a_mesh_changes_no_update(on_mesh):
    assert on_mesh["updates_from_optax"] < 1e-5


def test_matrices_are_exchanged_and_never_gathered(on_mesh):
    assert set(on_mesh["sent"]) <= {"all-to-all"}


def test_a_round_gives_each_device_a_matrix_and_rests_of_one_size_share_it():
    received = facts(QUICK)["fsdp=4,tensor=2"]["sent"]["all-to-all"]["received"]
    # `up` and `down` (six matrices), `mix` (three) and `read` (one, on four devices): a round each.
    # All but its own of a round's tiles come from others, fp32, there and back.
    assert received == 2 * 4 * (7 * 16 * 32 / 8 + 7 * 16 * 16 / 8 + 3 * 16 * 8 / 4)


def test_training_on_a_mesh_is_training_on_one_device(on_mesh):
    assert on_mesh["weights_from_one_device"] < 1e-5


def test_moments_and_averages_are_sharded_as_their_weights(on_mesh):
    assert on_mesh["misplaced"] == []


@pytest.mark.parametrize("group", [QUICK, pytest.param(MORE, marks=pytest.mark.slow)])
def test_offloaded_moments_are_on_the_host_and_change_nothing(group):
    found = facts(group)[group[0]]
    assert found["not_on_host"] == []
    assert found["state_from_offloaded"] == 0.0
