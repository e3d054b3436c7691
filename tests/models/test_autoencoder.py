"""The KL autoencoders against diffusers, block by block and whole."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import lively
from tests.models.diffusers_folder import SMALL
from tests.models.torch_weights import (
    assert_close,
    assert_trees_close,
    gradients_of,
    state_of,
    tree_of,
)
from tests.tiny import tiny_config
from unicom_jax.core.module import iter_specs
from unicom_jax.families.build import build_space
from unicom_jax.interop.folders import module_in, write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.mapping import places
from unicom_jax.interop.tensors import WeightsError
from unicom_jax.models.autoencoder import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    flux2_autoencoder,
    flux_autoencoder,
)
from unicom_jax.models.autoencoder_layers import AttentionBlock, ResnetBlock
from unicom_jax.models.latent_decoder import LatentDecoder
from unicom_jax.models.paint_space import LatentSpace, pack, patches_of, unpack
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
    theirs = twin.decode(channels_first(latents)).sample
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


# ---- FLUX.2 -------------------------------------------------------------------------------

FLUX2 = AutoencoderKLFlux2(4, (8, 16), resnets=1, groups=4, quant_conv=True)
SPACE = LatentSpace(FLUX2, patch=4, rows=2, cols=3)  # of IMAGES
GRIDS = np.array([[2, 3]] * 2, np.int32)


def flux2_twin(module, device="cpu"):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device(device):
        return diffusers.AutoencoderKLFlux2.from_config(LAYOUT.describe(module)).eval()


@pytest.fixture(scope="module")
def twin2():
    """Random weights, and statistics unlike those of an untrained BatchNorm."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    twin = shake(flux2_twin(FLUX2))
    twin.bn.running_mean.normal_()
    twin.bn.running_var.uniform_(0.0, 2.0)
    twin.bn.num_batches_tracked.fill_(7)
    return twin


@pytest.fixture(scope="module")
def params2(twin2):
    return tree_of(LAYOUT, FLUX2, {**state_of(twin2), **statistics_of(twin2)})


def statistics_of(twin):
    return {f"bn.{name}": value.numpy() for name, value in twin.bn.named_buffers() if value.ndim}


def packed(latents):
    """Torch latents (B, c, h, w) as FLUX.2's pipeline packs them: (B, 4 c, h/2, w/2)."""
    return pytest.importorskip("torch").nn.functional.pixel_unshuffle(latents, 2)


def tokens_of(packed):
    return packed.flatten(2).transpose(1, 2)


def normalised(twin, latents):
    """What FLUX.2 draws: packed, through the BatchNorm."""
    return twin.bn(packed(twin.encode(latents).latent_dist.mode()))


def gradients_of_half(twin):
    """As our tree; the other half has none."""
    zero = {name: np.zeros(weight.shape, np.float32) for name, weight in state_of(twin).items()}
    own = {n: w.grad.numpy() for n, w in twin.named_parameters() if w.grad is not None}
    return tree_of(LAYOUT, FLUX2, {**zero, **own, **statistics_of(twin)})


def test_flux2_means_and_pictures_equal_diffusers(twin2, params2):
    theirs = twin2.encode(channels_first(IMAGES)).latent_dist
    mean, log_variance = jax.jit(FLUX2.moments)(params2, IMAGES)
    assert_close(mean, channels_last(theirs.mean), 1e-5)
    assert_close(log_variance, channels_last(theirs.logvar), 1e-5)
    latents = np.random.default_rng(1).normal(size=(2, 4, 6, 4)).astype(np.float32)
    decoded = twin2.decode(channels_first(latents)).sample
    ours = jax.jit(FLUX2.decode)(params2, latents)
    assert_close(ours, channels_last(decoded), 1e-5)


def test_flux2_packed_latents_are_normalised_as_in_diffusers(twin2, params2):
    patches = patches_of(jnp.asarray(IMAGES), SPACE.patch)
    ours = jax.jit(SPACE.encode)({"autoencoder": params2}, patches, GRIDS)
    theirs = tokens_of(normalised(twin2, channels_first(IMAGES)))
    assert_close(ours, theirs.detach(), 1e-5)


def test_the_decoder_half_alone_paints_normalised_latents_and_learns_as_in_diffusers(
    twin2, params2
):
    torch = pytest.importorskip("torch")
    half = LatentDecoder(SPACE)
    own = {name: params2[name] for name in half.specs()}
    assert own.keys() == {"decoder", "post_quant_conv", "statistics"} and half.width == 8
    latents = np.random.default_rng(2).normal(size=(2, 6, 16)).astype(np.float32)

    drawn = torch.tensor(latents, requires_grad=True)
    square = drawn.transpose(1, 2).unflatten(2, (2, 3))
    square = square * torch.sqrt(twin2.bn.running_var + twin2.bn.eps)[:, None, None]
    square = square + twin2.bn.running_mean[:, None, None]
    twin2.zero_grad()
    pictures = twin2.decode(torch.nn.functional.pixel_shuffle(square, 2)).sample
    pictures.square().mean().backward()

    def error(own, latents):
        patches = half(own, latents, GRIDS)
        return jnp.square(patches).mean(), patches

    gradient = jax.jit(jax.grad(error, argnums=(0, 1), has_aux=True))
    (weights, ours), patches = gradient(own, jnp.asarray(latents))
    painted = patches_of(jnp.asarray(channels_last(pictures)), SPACE.patch)
    assert_close(patches, painted, 1e-5)
    assert_close(ours, drawn.grad, 1e-5)
    theirs = gradients_of_half(twin2)
    for name in ("decoder", "post_quant_conv"):
        assert_trees_close(weights[name], theirs[name], 1e-5, floor=1e-6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(weights["statistics"]))


def test_gradients_of_the_flux2_encoder_equal_diffusers(twin2, params2):
    def error(encoder):
        patches = patches_of(jnp.asarray(IMAGES), SPACE.patch)
        frozen = {"autoencoder": {**params2, **encoder}}
        return jnp.square(SPACE.encode(frozen, patches, GRIDS) - 1.0).mean()

    twin2.zero_grad()
    (normalised(twin2, channels_first(IMAGES)) - 1.0).square().mean().backward()
    theirs = gradients_of_half(twin2)
    trained = {name: params2[name] for name in ("encoder", "quant_conv")}
    ours = jax.jit(jax.grad(error))(trained)
    for name in trained:
        assert_trees_close(ours[name], theirs[name], 1e-5, floor=1e-6)


def test_a_flux2_folder_goes_in_and_out(twin2, params2, tmp_path):
    twin2.save_pretrained(tmp_path / "given")
    config = tiny_config(data__patch=4, codec__autoencoder__path=str(tmp_path / "given"))
    adopt_autoencoder(config, tmp_path)
    space = build_space(config)
    assert space.autoencoder == FLUX2 and space.channels == 16
    loaded = load_autoencoder(config, tmp_path)["autoencoder"]
    chex.assert_trees_all_equal(loaded, params2)
    write_model(tmp_path / "out", LAYOUT, FLUX2, loaded)
    again = type(twin2).from_pretrained(tmp_path / "out")
    assert dict(again.config).items() >= dict(LAYOUT.describe(FLUX2), patch_size=[2, 2]).items()
    theirs, ours = (
        {k: v.numpy() for k, v in one.state_dict().items() if v.ndim} for one in (twin2, again)
    )
    assert theirs.keys() == ours.keys()
    for name, weight in theirs.items():
        np.testing.assert_array_equal(ours[name], weight)


def test_flux2_preset_has_the_published_sizes():
    module = flux2_autoencoder()
    specs = module.specs()
    millions = {
        half: sum(spec.size for name in (half, conv) for _, spec in iter_specs(specs[name])) / 1e6
        for half, conv in (("encoder", "quant_conv"), ("decoder", "post_quant_conv"))
    }
    assert millions == pytest.approx({"encoder": 34.43, "decoder": 49.62}, abs=5e-3)
    assert (module.packed_channels, module.factor, module.width) == (128, 8, 128)
    shapes = {k: tuple(v.shape) for k, v in flux2_twin(module, "meta").state_dict().items()}
    del shapes["bn.num_batches_tracked"]
    named = places(LAYOUT.table(module), specs)
    assert {name: place.shape for name, place in named.items()} == shapes


def test_a_flux2_folder_without_statistics_is_refused_in_one_line(tmp_path):
    write_model(tmp_path / "given", LAYOUT, TINY, lively(TINY))
    text = json.dumps(LAYOUT.describe(FLUX2))
    (tmp_path / "given" / "config.json").write_text(text)
    config = tiny_config(data__patch=4, codec__autoencoder__path=str(tmp_path / "given"))
    lacks = r"lacks bn\.running_mean, bn\.running_var; .*the statistics by which its latents"
    with pytest.raises(WeightsError, match=lacks) as error:
        adopt_autoencoder(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_statistics_of_other_squares_than_the_patch_has_are_refused():
    with pytest.raises(ValueError, match=r"squares of 2 x 2 .* 4 x 4; set data\.patch=4$"):
        dataclasses.replace(SPACE, patch=8)


# ---- packing ------------------------------------------------------------------------------


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
def test_wrong_sizes_name_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()
