"""Folders of the foreign libraries: read, written again, and loaded there as they were."""

from __future__ import annotations

import json
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop import foreign
from unicom_jax.config import ConfigError
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.module import init_params
from unicom_jax.interop.folders import check_model, module_in, read_model, write_model
from unicom_jax.interop.layouts import autoencoder, siglip
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


# ---- damaged and foreign folders --------------------------------------------------------------

DAMAGES = {
    "lacks": lambda state, name: state.pop(name),
    "other has no place in the model; check the sizes": lambda state, name: state.update(
        other=np.zeros(1, np.float32)
    ),
    "has shape .* the config asks for": lambda state, name: state.update(
        {name: np.zeros((2, 3), np.float32)}
    ),
    "has type I32; convert it to float32": lambda state, name: state.update(
        {name: state[name].astype(np.int32)}
    ),
}


@pytest.mark.parametrize(
    "kind",
    ["fixed_vision", "naflex_text", "qwen3_untied", "qwen_vl_tied", "autoencoder", "flux", "sd3"],
)
def test_damaged_weights_are_named_in_one_line(tmp_path, kind):
    layout, model = foreign.make(kind)
    model.save_pretrained(tmp_path)
    module, file = module_in(tmp_path, layout), tmp_path / f"{layout.stem}.safetensors"
    sound = load_file(file)
    for message, damage in DAMAGES.items():
        state, name = dict(sound), sorted(sound)[0]
        damage(state, name)
        save_file(state, file)
        with pytest.raises(WeightsError, match=message) as error:
            check_model(tmp_path, layout, module)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(WeightsError, match=f"{file} is damaged"):
        check_model(tmp_path, layout, module)
    file.unlink()
    with pytest.raises(WeightsError, match=f"{file} is missing"):
        check_model(tmp_path, layout, module)


Q_PROJ = "model.layers.0.self_attn.q_proj"


def edited(folder, layout, change) -> None:
    """Applies `change(state)` to the tensors of a folder."""
    file = folder / f"{layout.stem}.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{Q_PROJ}.SCB": np.ones(3, np.float32)}, "SCB belongs to quantised weights"),
        ({f"{Q_PROJ}.bias": np.ones(32, np.float32)}, "q_proj.bias is a bias of a layer"),
        (
            {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)},
            "is a stored table of rotary frequencies, which differs",
        ),
        ({f"{Q_PROJ}.lora_A.weight": np.ones((2, 2), np.float32)}, "belongs to a LoRA adapter"),
    ],
)
def test_a_tensor_without_a_place_is_named_for_what_it_is(tmp_path, extra, message):
    layout, model = foreign.make("qwen3_untied")
    model.save_pretrained(tmp_path)
    edited(tmp_path, layout, lambda state: state.update(extra))
    with pytest.raises(WeightsError, match=message):
        check_model(tmp_path, layout, module_in(tmp_path, layout))


def test_quantised_weights_are_named_before_what_they_lack(tmp_path):
    layout, model = foreign.make("qwen2_tied")
    model.save_pretrained(tmp_path)

    def quantise(state):
        state[f"{Q_PROJ}.qweight"] = state.pop(f"{Q_PROJ}.weight").astype(np.int32)

    edited(tmp_path, layout, quantise)
    with pytest.raises(WeightsError, match="qweight belongs to quantised weights"):
        check_model(tmp_path, layout, module_in(tmp_path, layout))


def test_rotary_frequencies_that_an_older_version_stored_are_recognised(tmp_path):
    layout, model = foreign.make("qwen2_tied")
    model.save_pretrained(tmp_path)
    module = module_in(tmp_path, layout)
    before = read_model(tmp_path, layout, module)
    table = (10_000.0 ** (-np.arange(4) / 4)).astype(np.float32)
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    edited(tmp_path, layout, lambda state: state.update({name: table}))
    chex.assert_trees_all_equal(read_model(tmp_path, layout, module), before)


def test_a_projection_that_pools_its_heads_as_unitok_can_is_refused_as_that(tmp_path):
    layout, module = LAYOUTS["projection"], make_compressor("attention", 12, 4, heads=2)
    write_model(tmp_path / "out", layout, module, init_params(module.specs(), jax.random.key(0)))
    pooled = {"attn.proj.weight": np.zeros((4, 4), np.float32)}  # ours: (4, 12 / 2)
    edited(tmp_path / "out", layout, lambda state: state.update(pooled))
    with pytest.raises(WeightsError, match="UniTok pools the channels of a head down to out_dim"):
        check_model(tmp_path / "out", layout, module)


def test_the_old_names_of_an_autoencoders_attention_are_read_as_diffusers_does(tmp_path):
    layout, model = foreign.make("autoencoder")
    model.save_pretrained(tmp_path)
    module = module_in(tmp_path, layout)
    before = read_model(tmp_path, layout, module)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(state):
        for name in [name for name in state if ".attentions." in name]:
            for new, former in old.items():
                if f".{new}." in name:
                    state[name.replace(new, former)] = state.pop(name)

    edited(tmp_path, layout, rename)
    file = tmp_path / f"{layout.stem}.safetensors"
    assert sum(".proj_attn." in name for name in load_file(file)) == 4
    chex.assert_trees_all_equal(read_model(tmp_path, layout, module), before)
    again = type(model).from_pretrained(tmp_path)  # diffusers reads the same
    assert all(a.equal(b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_missing_shard_is_named(tmp_path):
    layout, model = foreign.make("qwen2_untied")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*-of-*"))[1]
    shard.unlink()
    with pytest.raises(WeightsError, match=f"{shard.name} is missing"):
        check_model(tmp_path, layout, module_in(tmp_path, layout))


def test_an_untied_model_without_its_head_is_refused(tmp_path):
    layout, model = foreign.make("qwen2_tied")
    model.save_pretrained(tmp_path)
    change(tmp_path, tie_word_embeddings=False)
    with pytest.raises(
        WeightsError, match="lacks lm_head.weight; .*tie_word_embeddings in its config.json"
    ):
        check_model(tmp_path, layout, module_in(tmp_path, layout))


def change(folder, **entries) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("kind", "entries", "message"),
    [
        ("fixed_vision", {"model_type": "clip"}, "model_type is 'clip', not siglip"),
        ("fixed_vision", {"hidden_act": "quick_gelu"}, "hidden_act is 'quick_gelu'"),
        ("fixed_vision", {"vision_use_head": False}, "vision_use_head is False"),
        ("naflex_vision", {"hidden_size": "wide"}, "hidden_size is 'wide'; it has to be like 768"),
        ("qwen2_tied", {"model_type": "llama"}, "model_type is 'llama', not qwen2 or qwen3"),
        ("qwen2_tied", {"use_sliding_window": True}, "use_sliding_window is True"),
        (
            "qwen3_tied",
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            "rope_scaling has rope_type 'dynamic'; supported are default, linear and yarn",
        ),
        (
            "qwen3_tied",
            {"rope_parameters": {"rope_type": "linear"}},
            "factor of rope_parameters is None",
        ),
        (
            "qwen2_tied",
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16}},
            "beta_fast is 16",
        ),
        (
            "qwen2_tied",
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.0}},
            "attention_factor of rope_scaling is 1.0",
        ),
        (
            "qwen2_tied",
            {
                "rope_parameters": {"rope_theta": 500.0},
                "rope_scaling": {"type": "linear", "factor": 2.0},
            },
            "rope_theta is 10000, not 500; add rope_theta to rope_scaling",
        ),
        (
            "qwen2_tied",
            {"rope_parameters": {"full_attention": {"rope_theta": 500.0}}},
            "rope_parameters differs between layers",
        ),
        ("qwen2_tied", {"num_key_value_heads": 3}, "is not a multiple of kv_heads=3"),
        ("autoencoder", {"_class_name": "AutoencoderDC"}, "_class_name is 'AutoencoderDC'"),
        ("flux", {"_class_name": "SD3Transformer2DModel"}, "'SD3Transformer2DModel', not 'Flux"),
        ("autoencoder", {"act_fn": "relu"}, "act_fn is 'relu'"),
    ],
)
def test_a_config_of_another_model_is_refused_in_one_line(tmp_path, kind, entries, message):
    layout, model = foreign.make(kind)
    model.save_pretrained(tmp_path)
    change(tmp_path, **entries)
    with pytest.raises((ConfigError, WeightsError), match=message) as error:
        module_in(tmp_path, layout)
    assert str(tmp_path / "config.json") in str(error.value) and "\n" not in str(error.value)


def test_only_sizes_of_an_autoencoder_stand_for_its_missing_name(tmp_path):
    """Another model would be taken for one of the default sizes."""
    path = tmp_path / "config.json"
    for described in ({"model_type": "qwen2_5_vl"}, {"stages": ["codec"]}, {}):
        with pytest.raises(ConfigError, match="_class_name is None, but only AutoencoderKL"):
            autoencoder.module_of(described, path)
    assert autoencoder.module_of({"block_out_channels": [64]}, path).widths == (64,)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("scaling", "fields"),
    [
        (YARN, ("yarn", 4.0, 64)),
        ({"rope_type": "yarn", "factor": 2.0}, ("yarn", 2.0, 32_768)),
        ({"rope_type": "linear", "factor": 3.0}, ("linear", 3.0, 0)),
    ],
)
def test_scaled_rotary_positions_give_the_logits_of_transformers(tmp_path, scaling, fields):
    """transformers takes rope_scaling before the rope_parameters that it wrote itself."""
    torch = pytest.importorskip("torch")
    layout, model = foreign.make("qwen2_untied")
    model.save_pretrained(tmp_path)
    assert "rope_parameters" in json.loads((tmp_path / "config.json").read_text())
    change(tmp_path, rope_scaling=scaling)
    module = module_in(tmp_path, layout)
    assert (module.rope_scaling, module.rope_factor, module.rope_length) == fields
    tokens = np.arange(40)[None] * 7 % 50
    with torch.no_grad():
        again = type(model).from_pretrained(tmp_path)(torch.from_numpy(tokens)).logits.numpy()
        unscaled = model(torch.from_numpy(tokens)).logits.numpy()
    params = read_model(tmp_path, layout, module)
    found = logits_of(module, params, tokens)
    assert np.abs(found - again).max() <= 1e-5 * np.abs(again).max()
    assert np.abs(found - unscaled).max() > 1e-2 * np.abs(again).max()
    write_model(tmp_path / "out", layout, module, params)  # and back to transformers
    with torch.no_grad():
        back = type(model).from_pretrained(tmp_path / "out")(torch.from_numpy(tokens)).logits
    assert np.array_equal(back.numpy(), again)


def logits_of(module, params, tokens):
    """Logits of plain text."""
    length = tokens.shape[1]
    index = jnp.arange(length)[None]
    mask = MaskIntervals(0 * index, index + 1, 0 * index, 0 * index)
    hidden = module.embed(params, tokens)
    hidden, _ = module(params, hidden, jnp.stack([index, index], -1), mask)
    return np.asarray(module.logits(params, hidden))


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_folder_without_a_readable_config_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json (is missing|cannot be read)"):
        module_in(tmp_path, LAYOUTS["qwen"])


def test_a_write_that_fails_midway_leaves_nothing(tmp_path):
    layout, module = LAYOUTS["projection"], PROJECTIONS["mlp"]
    params = init_params(module.specs(), jax.random.key(0))
    params["mlp"]["down"]["kernel"] = None  # nothing to write when its turn comes
    with pytest.raises(AttributeError):
        write_model(tmp_path / "out", layout, module, params)
    assert list(tmp_path.iterdir()) == []


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
