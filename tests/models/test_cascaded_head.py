"""Cheers' flow head against a plain torch statement, and its own properties."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.families.documents import lively
from tests.models.torch_weights import assert_close
from unicom_jax.models.cascaded_head import CascadedHead, in_halves
from unicom_jax.models.modulated_stack import ModulatedStack

WIDTH, VISION, LATENT, FOLD = 24, 16, 6, 2
SIZES = {
    "semantics": (WIDTH, FOLD**2 * VISION, 2, 4, 2),  # width, output, depth, heads, key heads
    "details": (VISION, LATENT, 1, 4, 1),
}


def stage(name: str) -> ModulatedStack:
    fields = ("width", "out_dim", "depth", "heads", "kv_heads")
    return ModulatedStack(**dict(zip(fields, SIZES[name], strict=True)))


HEAD = CascadedHead(semantics=stage("semantics"), details=stage("details"), fold=FOLD)
PARAMS = lively(HEAD, scale=0.2)
GRIDS = np.array([[4, 4], [4, 4]], np.int32)
RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


HIDDEN, EMBEDDED, TIME = normal(2, 4, WIDTH), normal(2, 16, VISION), np.float32([0.003, 0.8])
TARGET = normal(2, 16, LATENT)
run = jax.jit(HEAD)


@pytest.fixture(scope="module")
def fresh():
    return HEAD.init(jax.random.key(0))


def squares(head: CascadedHead, grids: np.ndarray = GRIDS):
    """(weights, hidden, embedded) -> loss and velocity, and gradients."""

    def loss(params, hidden, embedded):
        speed = head(params, hidden, TIME, embedded, grids).prediction
        return jnp.sum(jnp.square(speed - TARGET)), speed

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def torch_results(model, *inputs, params):
    """Output, gradients of inputs and gradients of weights under the same loss."""
    torch = pytest.importorskip("torch")
    given = [torch.from_numpy(np.array(x)).requires_grad_() for x in inputs]
    speed = model(given[0], torch.from_numpy(TIME), given[1])
    torch.sum((speed - torch.from_numpy(TARGET)) ** 2).backward()
    from tests.models.own_names import gradients

    return speed.detach().numpy(), [x.grad for x in given], gradients(model, params)


@pytest.mark.parametrize("name", ["semantics", "details"])
def test_a_stage_of_blocks_is_the_papers(name):
    torch = pytest.importorskip("torch")
    from tests.models.cheers_head_torch import Stack
    from tests.models.own_names import gradients, load

    module, params = stage(name), PARAMS[name]
    tokens = 4 if name == "semantics" else 16
    x, when, wanted = (
        normal(2, tokens, module.width),
        normal(2, module.width),
        normal(2, tokens, module.out_dim),
    )

    def loss(params, x, when):
        out = module(params, x, when[:, None], np.full(2, tokens), np.arange(tokens))
        return jnp.sum(jnp.square(out - wanted)), out

    (_, out), found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        params, x, when
    )
    model = load(Stack(*SIZES[name]), params)
    inputs = [torch.from_numpy(a).requires_grad_() for a in (x, when)]
    theirs = model(*inputs, torch.arange(tokens).float())
    torch.sum((theirs - torch.from_numpy(wanted)) ** 2).backward()
    assert_close(out, theirs.detach(), 1e-5, "output")
    for ours, given in zip(found[1:], inputs, strict=True):
        assert_close(ours, given.grad, 1e-5, "inputs")
    ours = traverse_util.flatten_dict(found[0], sep="/")
    reference = gradients(model, params)
    assert set(reference) == set(ours)
    for path, value in reference.items():
        assert_close(ours[path], value, 1e-5, path)


OPTIONS = {
    "as in the code": {},
    "as in the formula": {"norm": False, "positions": "released"},
    "without details": {"gate": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_head_is_the_papers(name):
    pytest.importorskip("torch")
    from tests.models.cheers_head_torch import Head
    from tests.models.own_names import load

    options = OPTIONS[name]
    head = dataclasses.replace(HEAD, **options)
    params = {part: PARAMS[part] for part in head.specs()}
    (_, speed), found = squares(head)(params, HIDDEN, EMBEDDED)
    halves = options.get("positions") == "released"
    choices = {key: value for key, value in options.items() if key != "positions"}
    model = load(Head(SIZES["semantics"], SIZES["details"], FOLD, **choices, halves=halves), params)
    theirs, inputs, weights = torch_results(model, HIDDEN, EMBEDDED, params=params)
    assert_close(speed, theirs, 1e-4, "velocity")
    for ours, reference in zip(found[1:], inputs, strict=True):
        if reference is None:  # nothing depends on it
            assert not np.any(ours)
        else:
            assert_close(ours, reference, 1e-4, "inputs")
    ours = traverse_util.flatten_dict(found[0], sep="/")
    assert set(weights) == set(ours)
    for path, value in weights.items():
        assert_close(ours[path], value, 1e-4, path)


def test_a_gate_of_zero_is_the_head_without_details(fresh):
    shut = {**PARAMS, "gate": {**PARAMS["gate"], "down": fresh["gate"]["down"]}}
    found = run(shut, HIDDEN, TIME, EMBEDDED, GRIDS)
    without = jax.jit(dataclasses.replace(HEAD, gate=False))(PARAMS, HIDDEN, TIME, EMBEDDED, GRIDS)
    np.testing.assert_allclose(found.prediction, without.prediction, atol=1e-6)
    assert without.gate is None and found.gate.shape == (2, 16) and not np.any(found.gate)
    details = run(PARAMS, HIDDEN, TIME, EMBEDDED, GRIDS)
    assert np.abs(details.gate).min() > 0
    assert np.abs(details.prediction - found.prediction).max() > 0.1


def test_a_fresh_head_has_no_details_and_another_velocity_than_zero(fresh):
    found = run(fresh, HIDDEN, TIME, EMBEDDED, GRIDS)
    assert not np.any(found.gate) and np.abs(found.prediction).max() > 0.1
    for name in ("semantics", "details"):
        assert not np.any(fresh[name]["blocks"]["modulation"]["kernel"])
        assert np.any(fresh[name]["modulation"]["kernel"])


@pytest.mark.parametrize("positions", ["plain", "released"])
def test_pictures_of_other_shapes_are_computed_as_if_alone(positions):
    run = jax.jit(dataclasses.replace(HEAD, positions=positions))
    shapes = [(2, 6), (4, 2)]
    grids = np.array(shapes, np.int32)
    hidden, embedded = normal(2, 4, WIDTH), normal(2, 16, VISION)
    padded = run(PARAMS, hidden, TIME, embedded, grids)
    for row, (rows, columns) in enumerate(shapes):
        tokens = rows * columns
        one = slice(row, row + 1)
        alone = run(
            PARAMS, hidden[one, : tokens // 4], TIME[one], embedded[one, :tokens], grids[one]
        )
        np.testing.assert_allclose(padded.prediction[one, :tokens], alone.prediction, atol=1e-5)
        assert not np.any(padded.prediction[row, tokens:]) and not np.any(padded.gate[row, tokens:])


@pytest.mark.parametrize(
    ("tokens", "places"),
    [
        (8, [0, 1, 2, 3, 0, 1, 2, 3]),
        (9, [0, 1, 2, 3, 4, 0, 1, 2, 3]),
        (2, [0, 0]),
        (1, [0]),
    ],
)
def test_released_positions_count_both_halves_of_a_picture_from_0(tokens, places):
    count = in_halves(jnp.arange(12), np.array([[tokens], [0]], np.int32))
    assert count[0, :tokens].tolist() == places
    assert count.shape == (2, 12)


def test_in_bfloat16_the_time_keeps_its_precision():
    """.9985 is 1 in bfloat16."""
    hidden, embedded = (jnp.asarray(x, jnp.bfloat16) for x in (HIDDEN, EMBEDDED))
    late, end = (
        run(PARAMS, hidden, np.full(2, time, np.float32), embedded, GRIDS).prediction
        for time in (0.9985, 1.0)
    )
    assert late.dtype == jnp.float32 and np.abs(late - end).max() > 1e-4
    exact = run(PARAMS, HIDDEN, np.ones(2, np.float32), EMBEDDED, GRIDS).prediction
    np.testing.assert_allclose(end, exact, atol=0.05 * np.abs(exact).max())


def test_no_picture_gives_finite_gradients():
    (_, speed), found = squares(HEAD, np.array([[4, 4], [0, 0]], np.int32))(
        PARAMS, HIDDEN, EMBEDDED
    )
    assert not np.any(speed[1])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))


def test_a_grid_that_does_not_fold_is_refused():
    with pytest.raises(ValueError, match="a grid of 3 x 4 tokens does not fill windows of 2 x 2"):
        HEAD(PARAMS, HIDDEN, TIME, EMBEDDED, np.array([[3, 4], [4, 4]], np.int32))


@pytest.mark.parametrize("change", [{"heads": 5}, {"kv_heads": 3}])
def test_heads_that_do_not_divide_are_refused(change):
    with pytest.raises(ValueError, match="make width a multiple of 2"):
        dataclasses.replace(stage("semantics"), **change)


def test_positions_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="unified.cheers.positions='odd' is not one of"):
        dataclasses.replace(HEAD, positions="odd")


def test_modules_have_the_released_counts_of_weights():
    """Millions, of arXiv 2603.12793's released sizes."""
    sizes = {"depth": 7, "heads": 12, "kv_heads": 2}
    semantics = ModulatedStack(width=1536, out_dim=4 * 1152, **sizes)
    details = ModulatedStack(width=1152, out_dim=128, depth=3, heads=16, kv_heads=2)
    head = CascadedHead(semantics=semantics, details=details)
    counts = {name: part.param_count() / 1e6 for name, part in head.parts.items()}
    assert round(counts["semantics"], 1) == 347.7
    assert round(counts["details"], 2) == 83.45
    assert round(counts["gate"] + counts["norm"], 2) == 1.33
    assert round(counts["semantics_time"] + counts["details_time"], 2) == 4.38
    assert semantics.block.attention.head_dim == 128 and details.block.attention.head_dim == 72
