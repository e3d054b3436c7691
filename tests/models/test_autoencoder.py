"""The KL autoencoder against diffusers, block by block and whole."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import lively
from tests.models.diffusers_folder import SMALL
from tests.models.torch_weights import gradients_of, state_of, tree_of
from tests.tiny import tiny_config
from unicom_jax.interop.folders import module_in, write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.models.autoencoder import (
    AttentionBlock,
    AutoencoderKL,
    ResnetBlock,
    flux_autoencoder,
)
from unicom_jax.models.paint_space import pack, unpack
from unicom_jax.runs.autoencoder import adopt_autoencoder, load_autoencoder

LAYOUT = LAYOUTS["autoencoder"]
TINY = AutoencoderKL(4, (8, 16), resnets=1, groups=4, quant_conv=True, scale=0.5, shift=0.25)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)


def torch_twin(module, device="cpu"):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    levels = len(module.widths)
    with torch.device(device):
        twin = diffusers.AutoencoderKL(
            block_out_channels=module.widths,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=module.resnets,
            latent_channels=module.latent_channels,
            norm_num_groups=module.groups,
            use_quant_conv=module.quant_conv,
            use_post_quant_conv=module.quant_conv,
        )
    return twin


def shake(twin):
    """Norm scales other than 1 and biases other than 0, so that mistakes in them show."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return twin


def channels_first(x):
    return pytest.importorskip("torch").tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())


def channels_last(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def twin():
    return shake(torch_twin(TINY))


@pytest.fixture(scope="module")
def params(twin):
    return tree_of(LAYOUT, TINY, state_of(twin))


@pytest.mark.parametrize("quant_conv", [True, False])
def test_moments_equal_diffusers(quant_conv):
    module = dataclasses.replace(TINY, quant_conv=quant_conv)
    twin = shake(torch_twin(module))
    ours = jax.jit(module.moments)(tree_of(LAYOUT, module, state_of(twin)), IMAGES)
    theirs = twin.encode(channels_first(IMAGES)).latent_dist
    np.testing.assert_allclose(ours[0], channels_last(theirs.mean), atol=1e-4)
    np.testing.assert_allclose(ours[1], channels_last(theirs.logvar), atol=1e-4)


def test_decoded_images_equal_diffusers(twin, params):
    latents = np.random.default_rng(1).normal(size=(2, 4, 6, 4)).astype(np.float32)
    theirs = twin.decode(channels_first(latents / TINY.scale + TINY.shift)).sample
    ours = jax.jit(TINY.decode)(params, latents)
    np.testing.assert_allclose(ours, channels_last(theirs), atol=1e-4)


@pytest.mark.parametrize("name", ["encoder.down_blocks.1.resnets.0", "decoder.mid_block.resnets.1"])
def test_resnet_block_equals_diffusers(twin, params, name):
    node = params
    for part in name.split("."):
        node = node[part]
    block = ResnetBlock(*node["conv1"]["kernel"].shape[2:], groups=4)
    x = np.random.default_rng(2).normal(size=(2, 4, 6, block.in_dim)).astype(np.float32)
    theirs = twin.get_submodule(name)(channels_first(x), None)
    np.testing.assert_allclose(block(node, x), channels_last(theirs), atol=1e-5)


def test_attention_block_equals_diffusers(twin, params):
    x = np.random.default_rng(2).normal(size=(2, 4, 6, 16)).astype(np.float32)
    theirs = twin.encoder.mid_block.attentions[0](channels_first(x))
    ours = AttentionBlock(16, groups=4)(params["encoder"]["mid_block"]["attentions"]["0"], x)
    np.testing.assert_allclose(ours, channels_last(theirs), atol=1e-5)


def test_gradients_of_all_weights_equal_diffusers(twin, params):
    def error(p):
        return jnp.square(TINY.decode(p, TINY.encode(p, IMAGES)) - IMAGES).mean()

    torch_images = channels_first(IMAGES)
    twin.zero_grad()
    (twin(torch_images).sample - torch_images).square().mean().backward()
    theirs = tree_of(LAYOUT, TINY, gradients_of(twin))
    ours = jax.jit(jax.grad(error))(params)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_flux_preset_has_the_public_number_of_weights():
    assert flux_autoencoder().param_count() == 83_819_683


def test_flux_preset_fits_the_shapes_of_diffusers():
    twin = torch_twin(flux_autoencoder(), device="meta")
    assert sum(w.numel() for w in twin.parameters()) == flux_autoencoder().param_count()


def test_encoded_latents_are_normalised_draws_of_the_posterior(params):
    mean, log_variance = TINY.moments(params, IMAGES)
    noise = jax.random.normal(jax.random.key(0), mean.shape)
    drawn = TINY.encode(params, IMAGES, noise)
    expected = (mean + jnp.exp(log_variance / 2) * noise - TINY.shift) * TINY.scale
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


def test_pack_makes_flux_tokens():
    latents = np.arange(2 * 2 * 4 * 3).reshape(2, 2, 4, 3)
    tokens = pack(jnp.asarray(latents))
    assert tokens.shape == (2, 2, 12)
    first_channel = latents[0, :, :2, 0].ravel()  # the four places of channel 0 come first
    np.testing.assert_array_equal(tokens[0, 0, :4], first_channel)


def test_unpack_undoes_pack():
    latents = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    np.testing.assert_array_equal(unpack(pack(latents), 2, 3), latents)


def test_a_folder_that_diffusers_saved_is_read(twin, params, tmp_path):
    twin.register_to_config(scaling_factor=TINY.scale, shift_factor=TINY.shift)
    twin.save_pretrained(tmp_path / "given")
    config = tiny_config(codec__autoencoder__path=str(tmp_path / "given"))
    adopt_autoencoder(config, tmp_path)
    assert module_in(tmp_path / "given", LAYOUT) == TINY
    loaded = load_autoencoder(config, tmp_path)["autoencoder"]
    chex.assert_trees_all_equal(loaded, params)


def test_half_precision_weights_are_read_in_full(tmp_path):
    given = lively(SMALL)
    write_model(tmp_path / "given", LAYOUT, SMALL, given, dtype="BF16")
    config = tiny_config(codec__autoencoder__path=str(tmp_path / "given"))
    adopt_autoencoder(config, tmp_path)
    loaded = load_autoencoder(config, tmp_path)["autoencoder"]
    chex.assert_trees_all_close(loaded, given, rtol=4e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dataclasses.replace(TINY, groups=5), "change widths or groups"),
        (lambda: TINY.moments({}, jnp.zeros((1, 9, 8, 3))), "multiples of 2"),
        (lambda: pack(jnp.zeros((1, 3, 4, 4))), "make both sides multiples of 2"),
    ],
)
def test_wrong_sizes_name_the_mend(call, message):
    with pytest.raises(ValueError, match=message):
        call()
