"""FLUX.1's transformer against diffusers: parts, blocks, whole, gradients, published sizes."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import lively
from tests.models.flux_twin import SMALL, tree_of, twin_of
from tests.models.torch_weights import assert_close, assert_trees_close, gradients_of, state_of
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.positions import axial_rope
from unicom_jax.interop.layouts.flux import describe
from unicom_jax.models.flux import FLUX_SIZES, ROPE_THETA

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
flux = pytest.importorskip("diffusers.models.transformers.transformer_flux")

LAYER, MODEL = 1e-5, 1e-4  # relative to the reference's largest value
CONTEXT, ROWS, COLS = 5, 3, 4
RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


IMAGE, TEXT = draw(2, ROWS * COLS, SMALL.channels), draw(2, CONTEXT, SMALL.context_dim)
POOLED, SIGMA, GUIDANCE = draw(2, SMALL.pooled_dim), np.float32([0.9, 0.25]), np.float32([1, 3.5])
IMAGE_PLACES = np.stack([np.zeros(12), *np.divmod(np.arange(12), COLS)], axis=-1).astype(np.float32)
TEXT_PLACES = np.zeros((CONTEXT, 3), np.float32)
INPUTS = {"image": IMAGE, "context": TEXT, "pooled": POOLED, "sigma": SIGMA, "guidance": GUIDANCE}


@partial(jax.jit, static_argnums=0)
def ours(module, params, image_places=IMAGE_PLACES, mask=None, **changes):
    places = [np.broadcast_to(p, (2, *p.shape)) for p in (image_places, TEXT_PLACES)]
    given = INPUTS | changes
    if not module.guidance_embeds:
        given = given | {"guidance": None}
    return module(
        params, given["image"], given["context"], given["pooled"], given["sigma"], *places,
        guidance=given["guidance"], mask=mask,
    )  # fmt: skip


def theirs(twin, given=INPUTS, image_places=IMAGE_PLACES):
    tensors = {name: torch.as_tensor(value) for name, value in given.items()}
    return twin(
        tensors["image"],
        encoder_hidden_states=tensors["context"],
        pooled_projections=tensors["pooled"],
        timestep=tensors["sigma"],
        img_ids=torch.from_numpy(image_places),
        txt_ids=torch.from_numpy(TEXT_PLACES),
        guidance=tensors["guidance"] if twin.config.guidance_embeds else None,
        return_dict=False,
    )[0]


@pytest.fixture(scope="module")
def twin():
    return twin_of(SMALL)


@pytest.fixture(scope="module")
def params(twin):
    return jax.tree.map(jnp.asarray, tree_of(SMALL, state_of(twin)))


def layer(tree, index):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)


# --- parts


def joint_turns():
    """Angles of [context | image], ours and theirs, at places up to 100."""
    places = np.concatenate([TEXT_PLACES, 9 * IMAGE_PLACES])
    turns = jax.jit(axial_rope, static_argnums=(1, 2))
    cos, sin = turns(np.stack([places] * 2), SMALL.rope_dims, ROPE_THETA)
    embed = flux.FluxPosEmbed(int(ROPE_THETA), SMALL.rope_dims)
    return (cos, sin), embed(torch.from_numpy(places))


def test_rotary_angles_are_those_of_diffusers():
    for mine, reference in zip(*joint_turns(), strict=True):
        # Each angle stands there twice, for both channels of a pair.
        np.testing.assert_allclose(mine[0], reference[:, ::2], atol=1e-5)


def test_time_guidance_and_pooled_text_are_embedded_alike(twin, params):
    with torch.no_grad():
        reference = twin.time_text_embed(
            *(torch.from_numpy(x) for x in (1000 * SIGMA, 1000 * GUIDANCE, POOLED))
        )
    assert_close(SMALL.steering(params, SIGMA, POOLED, GUIDANCE), reference, LAYER)


STEERING, X, Y = draw(2, 1, SMALL.width), draw(2, CONTEXT, SMALL.width), draw(2, 12, SMALL.width)


def blocks(twin):
    """Context and image after the second block of either kind, as diffusers computes them."""
    x, y, steering = (torch.from_numpy(value) for value in (X, Y, STEERING[:, 0]))
    _, turns = joint_turns()
    with torch.no_grad():
        return {
            kind: [part.numpy() for part in stack[1](y, x, steering, turns)]
            for kind, stack in (
                ("double", twin.transformer_blocks),
                ("single", twin.single_transformer_blocks),
            )
        }


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_a_double_block_is_that_of_diffusers(twin, params, backend):
    block = dataclasses.replace(SMALL, attention_backend=backend).double_block
    turns, _ = joint_turns()
    found = jax.jit(block)(layer(params["double"], 1), X, Y, STEERING, turns, None)
    for mine, reference in zip(found, blocks(twin)["double"], strict=True):
        assert_close(mine, reference, LAYER)


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_a_single_block_is_that_of_diffusers(twin, params, backend):
    block = dataclasses.replace(SMALL, attention_backend=backend).single_block
    turns, _ = joint_turns()
    joined = np.concatenate([X, Y], axis=1)
    found = jax.jit(block)(layer(params["single"], 1), joined, STEERING, turns, None)
    assert_close(found, np.concatenate(blocks(twin)["single"], axis=1), LAYER)


# --- whole


@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
def test_the_model_is_that_of_diffusers(guidance):
    module = dataclasses.replace(SMALL, guidance_embeds=guidance, out_channels=6)
    twin = twin_of(module)
    with torch.no_grad():
        reference = theirs(twin)
    found = ours(module, tree_of(module, state_of(twin)))
    assert found.shape == (2, ROWS * COLS, 6) and found.dtype == jnp.float32
    assert_close(found, reference, MODEL)


def test_gradients_of_weights_and_inputs_are_those_of_diffusers(twin, params):
    target = draw(2, ROWS * COLS, SMALL.out_channels)
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in INPUTS.items()}
    twin.zero_grad()
    (theirs(twin, tensors) * torch.from_numpy(target)).sum().backward()

    def loss(params, inputs):
        return jnp.sum(ours(SMALL, params, **inputs) * target)

    inputs = {name: INPUTS[name] for name in ("image", "context", "pooled")}
    of_params, of_inputs = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, inputs)
    reference = tree_of(SMALL, gradients_of(twin))
    # A key's bias is not quite without effect here, as keys are normed after it.
    assert_trees_close(of_params, reference, MODEL, floor=1e-5)
    for name, found in of_inputs.items():
        assert_close(found, tensors[name].grad, MODEL, name)


def gradient_of_image(module, params):
    def loss(image):
        return jnp.square(ours(module, params, image=image)).sum()

    return jax.jit(jax.grad(loss))(IMAGE)


@pytest.fixture(scope="module")
def plain_gradient(params):
    return gradient_of_image(SMALL, params)


@pytest.mark.parametrize("remat", ["full", "offload"])
def test_remat_changes_no_gradient(params, plain_gradient, remat):
    found = gradient_of_image(dataclasses.replace(SMALL, remat=remat), params)
    assert_close(found, plain_gradient, 1e-5)


def test_bf16_tokens_give_fp32_output_close_to_that_of_fp32(params):
    weights = lively(SMALL, scale=0.05)
    half = ours(SMALL, weights, image=jnp.asarray(IMAGE, jnp.bfloat16))
    assert half.dtype == jnp.float32
    assert_close(half, ours(SMALL, weights), 0.03)


def test_a_masked_slot_reaches_nobody(params):
    # The last context slot and the last two of the image are hidden from all.
    slots = jnp.zeros((2, CONTEXT + 12), jnp.int32)
    mask = MaskIntervals(slots, slots + CONTEXT - 1, slots + CONTEXT, slots + CONTEXT + 10)
    image, context = IMAGE.copy(), TEXT.copy()
    image[:, 10:] += 5.0
    context[:, -1] += 5.0
    plain = ours(SMALL, params, mask=mask)
    changed = ours(SMALL, params, mask=mask, image=image, context=context)
    np.testing.assert_array_equal(changed[:, :10], plain[:, :10])
    seen = MaskIntervals(slots, slots + CONTEXT + 12, slots, slots)
    changed = ours(SMALL, params, mask=seen, image=IMAGE, context=context)
    assert np.abs(changed - ours(SMALL, params, mask=seen)).max() > 1e-3


def test_a_fresh_model_says_nothing():
    fresh = jax.jit(SMALL.init)(jax.random.key(0))
    np.testing.assert_array_equal(ours(SMALL, fresh), 0.0)


# --- published sizes


def test_flux_1_dev_has_its_public_count():
    assert FLUX_SIZES["flux.1-dev"]().param_count() == 11_901_408_320


@pytest.mark.parametrize("name", FLUX_SIZES)
def test_a_published_size_has_as_many_weights_as_that_of_diffusers(name):
    module = FLUX_SIZES[name]()
    sizes = {key: value for key, value in describe(module).items() if not key.startswith("_")}
    with torch.device("meta"):
        twin = diffusers.FluxTransformer2DModel(**sizes)
    assert module.param_count() == sum(weight.numel() for weight in twin.parameters())


# --- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_dims": (4, 4, 4)}, "even numbers that sum to it"),
        ({"rope_dims": (4, 5, 7)}, "even numbers that sum to it"),
        ({"remat": "some"}, "unknown remat 'some'"),
        ({"attention_backend": "fast"}, "unknown attention backend"),
    ],
)
def test_a_wrong_option_names_the_fix(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(("embeds", "word"), [(True, "needs"), (False, "takes no")])
def test_guidance_is_given_just_where_the_network_takes_it(embeds, word):
    module = dataclasses.replace(SMALL, guidance_embeds=embeds)
    given = None if embeds else jnp.asarray(GUIDANCE)
    with pytest.raises(ValueError, match=f"the call {word} guidance"):
        module.steering(module.abstract(), SIGMA, POOLED, given)
