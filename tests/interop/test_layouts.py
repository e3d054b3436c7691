"""Folders of the foreign libraries: read, written again, and loaded there as they were."""

from __future__ import annotations

import json
import math

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop import foreign
from unicom_jax.core.module import init_params
from unicom_jax.interop.folders import module_in, read_model, write_model
from unicom_jax.interop.layouts import siglip
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.mapping import places
from unicom_jax.interop.tensors import WeightsError, open_tensors
from unicom_jax.models.autoencoder import flux_autoencoder
from unicom_jax.models.compressor import make_compressor, make_decompressor
from unicom_jax.models.contrastive import Contrastive
from unicom_jax.models.qwen_vl import QWEN_VL_SIZES
from unicom_jax.models.text_encoder import TextEncoder
from unicom_jax.models.transformer import TRANSFORMER_SIZES
from unicom_jax.models.vision_encoder import VisionEncoder

TORCH_DTYPES = {"F32": "float32", "BF16": "bfloat16"}
kinds = pytest.mark.parametrize("kind", foreign.KINDS)


def tensors_of(folder, layout) -> dict[str, np.ndarray]:
    tensors = open_tensors(folder, layout.stem)
    return {name: tensors.read(name) for name in tensors.facts}


def through_jax(given, out, layout, **options) -> None:
    module = module_in(given, layout)
    write_model(out, layout, module, read_model(given, layout, module), **options)


# ---- round trips ------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_a_file_comes_back_byte_for_byte(tmp_path, kind, dtype):
    torch = pytest.importorskip("torch")
    layout, model = foreign.make(kind)
    model.to(getattr(torch, TORCH_DTYPES[dtype])).save_pretrained(tmp_path / "given")
    through_jax(tmp_path / "given", tmp_path / "out", layout, dtype=dtype)
    file = f"{layout.stem}.safetensors"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "given" / file).read_bytes()


@pytest.mark.parametrize(
    "kind", ["naflex_full", "qwen2_untied", "qwen_vl_untied", "autoencoder", "flux", "sd3"]
)
def test_shards_come_back_bit_for_bit(tmp_path, kind):
    layout, model = foreign.make(kind)
    model.save_pretrained(tmp_path / "given", max_shard_size="20KB")
    assert len(list((tmp_path / "given").glob("*-of-*"))) > 1
    through_jax(tmp_path / "given", tmp_path / "out", layout, shard_bytes=30_000)
    assert len(list((tmp_path / "out").glob("*-of-*"))) > 1
    ours, theirs = (tensors_of(tmp_path / name, layout) for name in ("out", "given"))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


@kinds
def test_the_library_loads_what_we_write_and_answers_as_before(tmp_path, kind):
    torch = pytest.importorskip("torch")
    layout, model = foreign.make(kind)
    model.save_pretrained(tmp_path / "given")
    through_jax(tmp_path / "given", tmp_path / "out", layout)
    again, printed = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(printed[name] for name in ("missing_keys", "unexpected_keys"))
    with torch.no_grad():
        before, after = (answer(one, kind) for one in (model, again.eval()))
    assert torch.equal(before, after)


def answer(model, kind: str):
    """The first output for fixed inputs."""
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    tokens = {"input_ids": torch.randint(0, 50, (2, 6), generator=generator)}
    pictures = {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    if kind.startswith("naflex"):
        pictures = {
            "pixel_values": torch.randn(2, 16, 12, generator=generator),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
        }
    if kind == "flux":
        places = torch.stack(torch.meshgrid(*[torch.arange(4.0)] * 2, indexing="ij"), -1)
        return model(
            hidden_states=torch.randn(2, 16, 8, generator=generator),
            encoder_hidden_states=torch.randn(2, 5, 24, generator=generator),
            pooled_projections=torch.randn(2, 12, generator=generator),
            timestep=torch.tensor([0.3, 0.7]),
            guidance=torch.tensor([3.5, 1.0]),
            img_ids=torch.nn.functional.pad(places.reshape(16, 2), (1, 0)),
            txt_ids=torch.zeros(5, 3),
        ).sample
    if kind == "sd3":
        return model(
            hidden_states=torch.randn(2, 3, 6, 8, generator=generator),
            encoder_hidden_states=torch.randn(2, 5, 12, generator=generator),
            pooled_projections=torch.randn(2, 6, generator=generator),
            timestep=torch.tensor([300.0, 700.0]),
        ).sample
    if kind.startswith("qwen_vl"):
        ids = torch.tensor([[3, *[45] * 6, 9]])
        return model(
            input_ids=ids,
            mm_token_type_ids=(ids == 45).int(),
            pixel_values=torch.randn(24, 24, generator=generator),
            image_grid_thw=torch.tensor([[1, 4, 6]]),
        ).logits
    if kind == "autoencoder":
        return model(pictures["pixel_values"]).sample
    inputs = {"vision": pictures, "full": {**tokens, **pictures}}.get(kind.split("_")[1], tokens)
    return model(**inputs)[0]


@kinds
def test_a_module_comes_back_from_its_own_description(tmp_path, kind):
    layout, model = foreign.make(kind)
    model.save_pretrained(tmp_path)
    module = module_in(tmp_path, layout)
    described = json.loads(json.dumps(layout.describe(module), default=list))
    assert layout.module_of(described, tmp_path) == module


PROJECTIONS = {
    "attention_down": make_compressor("attention", 12, 4),
    "attention_up": make_decompressor("attention", 12, 4),
    "mlp": make_compressor("mlp", 12, 4),
    "pool": make_compressor("pool", 12, 4, window=2),
    "unpool": make_decompressor("pool", 12, 4, window=2),
    "identity": make_compressor("identity", 12, 12),
}


@pytest.mark.parametrize("kind", PROJECTIONS)
def test_a_projection_comes_back_bit_for_bit(tmp_path, kind):
    layout, module = LAYOUTS["projection"], PROJECTIONS[kind]
    params = init_params(module.specs(), jax.random.key(0))
    write_model(tmp_path / "out", layout, module, params)
    assert module_in(tmp_path / "out", layout) == module
    chex.assert_trees_all_equal(read_model(tmp_path / "out", layout, module), params)


# The names of `AttnProjection` in models/vqvae.py of FoundationVision/UniTok, its buffer too.
UNITOK = """
    attn.proj.bias attn.proj.weight attn.q_bias attn.qkv.weight attn.v_bias attn.zero_k_bias
    mlp.norm.bias mlp.norm.weight mlp.w0.bias mlp.w0.weight mlp.w1.bias mlp.w1.weight mlp.w2.bias
    mlp.w2.weight norm1.bias norm1.weight norm2.bias norm2.weight norm3.bias norm3.weight proj.bias
    proj.weight
"""


@pytest.mark.parametrize("kind", ["attention_down", "attention_up"])
def test_attention_projections_have_the_names_of_unitok(kind):
    module = PROJECTIONS[kind]
    named = places(LAYOUTS["projection"].table(module), module.specs())
    assert sorted(named) == UNITOK.split()
    assert named["attn.qkv.weight"].shape == (36, module.in_dim)


# ---- one of two towers, twins -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fixed", "naflex"])
@pytest.mark.parametrize("part", ["vision", "text"])
def test_a_tower_is_read_from_a_file_of_both(tmp_path, kind, part):
    layout, model = foreign.make(f"{kind}_full")
    model.save_pretrained(tmp_path)
    both = module_in(tmp_path, layout)
    alone = read_model(tmp_path, layout, getattr(both, part))
    whole = read_model(tmp_path, layout, both)
    chex.assert_trees_all_equal(alone, whole[part])


def test_a_tower_alone_may_have_the_prefix_of_older_versions(tmp_path):
    layout, model = foreign.make("fixed_vision")
    model.save_pretrained(tmp_path)
    module = module_in(tmp_path, layout)
    before = read_model(tmp_path, layout, module)
    file = tmp_path / "model.safetensors"
    save_file({f"vision_model.{name}": t for name, t in load_file(file).items()}, file)
    chex.assert_trees_all_equal(read_model(tmp_path, layout, module), before)


def test_a_pixel_head_has_no_place_in_siglip():
    sizes = {"width": 8, "depth": 1, "heads": 1, "mlp_dim": 8}
    model = Contrastive(VisionEncoder(**sizes), TextEncoder(**sizes), pixel_head=True)
    with pytest.raises(ValueError, match="take the model with pixel_head=False"):
        siglip.table(model)


@pytest.fixture
def tied(tmp_path):
    """A tied language model whose file holds the head once more, and its change."""
    layout, model = foreign.make("qwen2_tied")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"

    def change(shift: float) -> None:
        state = load_file(file)
        save_file({**state, "lm_head.weight": state["model.embed_tokens.weight"] + shift}, file)

    return layout, tmp_path, change


def test_a_tied_head_may_be_in_the_file(tied):
    layout, folder, change = tied
    before = read_model(folder, layout, module_in(folder, layout))
    change(0.0)
    after = read_model(folder, layout, module_in(folder, layout))
    chex.assert_trees_all_equal(before, after)


def test_a_tied_head_that_differs_is_refused(tied):
    layout, folder, change = tied
    change(1.0)
    with pytest.raises(
        WeightsError, match="lm_head.weight differs from .* config.json says that they are one"
    ):
        read_model(folder, layout, module_in(folder, layout))


# ---- the published sizes ----------------------------------------------------------------------

SO400M = VisionEncoder.named("so400m")  # NaFlex, patch 16, 256 positions
SO400M_TEXT = TextEncoder.named("so400m", out_dim=1152)
# Parameters as the Hub counts them in the files of google/siglip2-so400m-patch16-naflex,
# Qwen/Qwen2.5-1.5B, Qwen/Qwen2.5-7B, Qwen/Qwen2.5-VL-3B-Instruct and
# black-forest-labs/FLUX.1-dev/vae.
PUBLISHED = {
    "siglip2-so400m vision": ("siglip", SO400M, 427_888_064),
    "siglip2-so400m text": ("siglip", SO400M_TEXT, 707_782_896),
    "siglip2-so400m": ("siglip", Contrastive(SO400M, SO400M_TEXT), 1_135_670_962),
    "qwen2.5-1.5b": ("qwen", TRANSFORMER_SIZES["qwen2.5-1.5b"](), 1_543_714_304),
    "qwen2.5-7b": ("qwen", TRANSFORMER_SIZES["qwen2.5-7b"](), 7_615_616_512),
    "qwen2.5-vl-3b": ("qwen_vl", QWEN_VL_SIZES["qwen2.5-vl-3b"](), 3_754_622_976),
    "flux vae": ("autoencoder", flux_autoencoder(), 83_819_683),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_counts_the_published_number_of_parameters(name):
    layout, module, total = PUBLISHED[name]
    named = places(LAYOUTS[layout].table(module), module.specs())
    assert sum(math.prod(place.shape) for place in named.values()) == total


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_table_names_the_tensors_of_the_full_size_reference(name):
    torch = pytest.importorskip("torch")
    layout, module, _ = PUBLISHED[name]
    with torch.device("meta"):
        reference = full_size(LAYOUTS[layout].describe(module))
    named = places(LAYOUTS[layout].table(module), module.specs())
    released = LAYOUTS[layout].new_name
    theirs = {released(key): tuple(weight.shape) for key, weight in reference.named_parameters()}
    assert {key: place.shape for key, place in named.items()} == theirs


def full_size(description):
    """The reference model that a config.json of ours describes."""
    if description.get("_class_name") == "AutoencoderKL":
        return pytest.importorskip("diffusers").AutoencoderKL.from_config(description)
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, description["architectures"][0])
    return kind(kind.config_class.from_dict(description))
