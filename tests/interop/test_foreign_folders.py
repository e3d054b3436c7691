"""Folders of the foreign libraries that are damaged, of another kind, or of an older version."""

from __future__ import annotations

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.interop import foreign
from tests.interop.test_layouts import PROJECTIONS
from unicom_jax.config import ConfigError
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.module import init_params
from unicom_jax.interop.folders import check_model, module_in, read_model, write_model
from unicom_jax.interop.layouts import autoencoder
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.tensors import WeightsError
from unicom_jax.models.compressor import make_compressor

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
