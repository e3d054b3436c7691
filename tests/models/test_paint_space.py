"""What the pixel decoder paints in: patches to tokens and back, pixels or autoencoder latents."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.images import ImagePolicy, patchify
from tests.data.samples import picture
from tests.families.documents import lively
from tests.models.diffusers_folder import SMALL
from tests.tiny import tiny_config
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import build_autoencoder, build_codec, build_space, space_of
from unicom_jax.models import paint_space
from unicom_jax.models.autoencoder import AutoencoderKL
from unicom_jax.models.extent import Extent
from unicom_jax.models.paint_space import (
    LatentSpace,
    PixelSpace,
    canvases,
    image_of,
    pack,
    patches_of,
    unpack,
)

PATCH, ROWS, COLS = 4, 2, 3
SHAPES = np.array([[2, 1], [1, 3]], np.int32)  # rows and columns of two pictures
RAGGED = LatentSpace(SMALL, PATCH, ROWS, COLS, ragged=True)


@pytest.fixture(scope="module")
def frozen():
    return {"autoencoder": lively(SMALL, scale=0.2)}


def padded(shapes):
    """Patches (B, N, 48) in [-1, 1] of random pictures, with something that is not 0 behind."""
    batch = np.full((len(shapes), ROWS * COLS, 3 * PATCH**2), 77, np.uint8)
    for row, (rows, cols) in enumerate(shapes):
        batch[row, : rows * cols] = patchify(picture(row, rows * PATCH, cols * PATCH), PATCH)
    return np.asarray(to_unit(batch))


def test_patches_are_laid_out_as_the_data_pipeline_cuts_them():
    image = picture(0, 8, 12)
    cut = jnp.asarray(patchify(image, 4))[None]
    np.testing.assert_array_equal(image_of(cut, 2, 3, 4)[0], image)
    np.testing.assert_array_equal(patches_of(image_of(cut, 2, 3, 4), 4), cut)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_squares_of_latents_become_tokens_and_back(side):
    latents = np.random.default_rng(0).standard_normal((2, 2 * side, 3 * side, 5))
    tokens = pack(jnp.asarray(latents), side)
    assert tokens.shape == (2, 6, side**2 * 5)
    np.testing.assert_array_equal(unpack(tokens, 2, 3, side), jnp.asarray(latents))


def test_pixels_are_their_own_tokens():
    space, patches = PixelSpace(4), padded(SHAPES)
    assert space.channels == patches.shape[2] == 48
    np.testing.assert_array_equal(space.encode({}, patches, SHAPES), patches)
    np.testing.assert_array_equal(space.decode({}, patches, SHAPES), patches)


def test_a_token_holds_the_scaled_latents_of_its_own_patch(frozen):
    space = LatentSpace(SMALL, PATCH, ROWS, COLS)
    grids, patches = np.array([[ROWS, COLS]], np.int32), padded([(ROWS, COLS)])

    @jax.jit
    def both(frozen, patches):
        moments = SMALL.moments(frozen["autoencoder"], image_of(patches, ROWS, COLS, 4))
        return space.encode(frozen, patches, grids), moments

    tokens, (mean, _) = both(frozen, patches)
    assert mean.shape == (1, 4, 6, 4) and space.channels == 16
    latents = (mean - SMALL.shift) * SMALL.scale
    below = latents[0, 2:4, 4:6].transpose(2, 0, 1).ravel()  # row 1, column 2, channel-major
    np.testing.assert_allclose(tokens[0, 5], below, atol=1e-5)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_pictures_of_several_shapes_share_a_canvas_as_if_each_were_alone(frozen, direction):
    given = padded(SHAPES)
    if direction == "decode":
        given = np.random.default_rng(1).standard_normal((2, 6, 16)).astype(np.float32)
    together = jax.jit(getattr(RAGGED, direction))(frozen, given, SHAPES)
    for row, (rows, cols) in enumerate(SHAPES.tolist()):
        count = rows * cols
        one = jax.jit(getattr(RAGGED.of_grid(rows, cols), direction))
        alone = one(frozen, given[row : row + 1, :count], SHAPES[row : row + 1])
        np.testing.assert_allclose(together[row, :count], alone[0], atol=2e-5)
        assert not np.any(together[row, count:])


def test_canvases_hold_every_grid_with_the_fewest_patches():
    found = canvases(64, 64, 1024)
    assert found == [(25, 64), (41, 39), (64, 24)]
    for rows in range(1, 65):
        canvas = next(size for size in found if size[0] >= rows)
        assert min(64, 1024 // rows) <= canvas[1]
    assert canvases(2, 3, 6) == [(2, 3)]
    assert canvases(4, 4, 4) == [(1, 4), (2, 2), (4, 1)]


@pytest.mark.slow
def test_pictures_on_their_own_canvases_have_the_values_and_gradients_of_one_for_all(monkeypatch):
    tiny = AutoencoderKL(2, (2, 2), resnets=1, groups=1)
    space = LatentSpace(tiny, 2, 4, 4, ragged=True)  # of 16 patches pictures have up to four
    frozen = {"autoencoder": lively(tiny, scale=0.2)}
    grids = jnp.array([[4, 1], [2, 2], [1, 4], [2, 1]], jnp.int32)
    patches = jax.random.normal(jax.random.key(0), (4, 4, 12))

    def squares(patches):
        out = space.decode(frozen, space.encode(frozen, patches, grids), grids)
        return jnp.sum(out**2), out

    small = jax.jit(jax.grad(squares, has_aux=True))(patches)
    monkeypatch.setattr(paint_space, "canvases", lambda rows, cols, tokens: [(rows, cols)])
    whole = jax.jit(lambda patches: jax.grad(squares, has_aux=True)(patches))(patches)
    for ours, theirs in zip(small, whole, strict=True):
        assert jnp.any(theirs != 0)
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(jnp.abs(theirs).max()))


def test_an_extent_says_what_is_inside_at_every_resolution():
    extent = Extent(jnp.array([[1, 2]]), (2, 3))
    for scale in (1, 4):
        inside = extent.mask(jnp.zeros((1, 2 * scale, 3 * scale, 1)))[0, :, :, 0]
        assert int(inside.sum()) == 2 * scale**2 and bool(inside[:scale, : 2 * scale].all())


@pytest.mark.parametrize(
    ("policy", "canvas"),
    [
        (ImagePolicy("fixed", 64), (4, 4)),
        (ImagePolicy("bucket", 64, step=32), (8, 8)),  # 128 x 32 is the tallest
        (ImagePolicy("naflex", max_tokens=9), (9, 9)),
    ],
)
def test_a_canvas_holds_every_shape_of_a_policy(policy, canvas):
    assert policy.canvas(16) == canvas


def test_a_patch_that_the_autoencoder_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"data\.patch=5 is not a multiple of 2.*make it one"):
        LatentSpace(SMALL, 5, 1, 1)


@pytest.mark.parametrize(
    ("levels", "patch", "side"), [(4, 16, 2), (5, 16, 1), (6, 32, 1)], ids=["8x", "16x", "32x"]
)
def test_a_trained_autoencoder_reduces_pictures_by_its_widths(levels, patch, side):
    config = tiny_config(
        data__patch=patch, autoencoder__widths=(8,) * levels, autoencoder__latent_channels=3
    )
    space = space_of(config, build_autoencoder(config), (2, 2))
    assert (space.autoencoder.factor, space.side) == (patch // side, side)
    assert space.autoencoder.packed_channels == space.channels == 3 * side**2
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
    params = space.autoencoder.abstract()
    latents = jax.eval_shape(space.autoencoder.encode, params, images)
    assert latents.shape == (1, 64 * side // patch, 32 * side // patch, 3)
    assert jax.eval_shape(space.autoencoder.decode, params, latents).shape == images.shape


def test_pictures_of_another_shape_than_the_canvas_are_refused(frozen):
    patches = jax.ShapeDtypeStruct((1, 4, 48), jnp.float32)
    space = LatentSpace(SMALL, PATCH, ROWS, COLS)
    with pytest.raises(ValueError, match=r"2 x 3 patches here, not of 4"):
        jax.eval_shape(space.encode, frozen, patches, jnp.array([[2, 2]]))


def test_a_configuration_without_a_path_paints_pixels():
    assert build_space(tiny_config().to_dict()) == PixelSpace(16)


def test_an_autoencoder_that_was_not_read_is_named():
    with pytest.raises(ValueError, match="codec.autoencoder.path=there was not read yet"):
        build_codec(tiny_config(codec__autoencoder__path="there"))
