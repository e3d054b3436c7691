"""Qwen2.5-VL: names of several versions, config.json as released, parts read alone."""

from __future__ import annotations

import json

import chex
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models import qwen_vl_torch
from unicom_jax.config import ConfigError
from unicom_jax.interop.folders import check_model, module_in, read_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.tensors import WeightsError
from unicom_jax.models.qwen_vl import QWEN_VL_SIZES

LAYOUT = LAYOUTS["qwen_vl"]
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that transformers wrote, with a head of its own."""
    folder = tmp_path_factory.mktemp("saved")
    qwen_vl_torch.make(tied=False).save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy, and a function that changes its tensors."""
    for name in (FILE, "config.json"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())

    def change(function) -> None:
        save_file(function(load_file(tmp_path / FILE)), tmp_path / FILE)

    return tmp_path, change


def of_the_classes(name: str) -> str:
    """A released name as in files that hold the names of transformers' classes."""
    if name.startswith("model."):
        return name.replace("model.", "model.language_model.", 1)
    return f"model.{name}" if name.startswith("visual.") else name


def test_names_of_the_classes_are_read_as_the_released_ones(saved, copied):
    folder, change = copied
    module = module_in(saved, LAYOUT)
    change(lambda state: {of_the_classes(name): tensor for name, tensor in state.items()})
    assert not any(name.startswith("visual.") for name in load_file(folder / FILE))
    chex.assert_trees_all_equal(
        read_model(folder, LAYOUT, module), read_model(saved, LAYOUT, module)
    )


def test_a_tensor_under_both_names_is_refused(saved, copied):
    folder, change = copied
    change(lambda state: {**state, "model.language_model.norm.weight": state["model.norm.weight"]})
    with pytest.raises(WeightsError, match="has model.norm.weight twice") as error:
        check_model(folder, LAYOUT, module_in(saved, LAYOUT))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_value_that_is_not_a_number_is_refused(copied):
    folder, change = copied
    name = "visual.blocks.2.attn.qkv.bias"
    change(lambda state: {**state, name: np.full_like(state[name], np.nan)})
    with pytest.raises(WeightsError, match=f"{name} holds NaN or infinite values"):
        read_model(folder, LAYOUT, module_in(folder, LAYOUT))


@pytest.mark.parametrize("part", ["vision", "transformer"])
def test_a_part_is_read_alone(saved, part):
    module = module_in(saved, LAYOUT)
    alone = read_model(saved, LAYOUT, getattr(module, part))
    chex.assert_trees_all_equal(alone, read_model(saved, LAYOUT, module)[part])


# The config.json of Qwen/Qwen2.5-VL-3B-Instruct, without the entries that say nothing about sizes.
RELEASED = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}


def in_text_config(config: dict) -> dict:
    """The same as versions from 4.52 on write it."""
    outside = ("model_type", "vision_config", "image_token_id", "architectures")
    text = {key: value for key, value in config.items() if key not in outside}
    text["rope_scaling"] = {**text["rope_scaling"], "rope_type": "default", "type": "default"}
    return {**{key: config[key] for key in outside}, "text_config": text}


@pytest.mark.parametrize("written", [dict, in_text_config])
def test_the_released_config_is_the_named_size(tmp_path, written):
    (tmp_path / "config.json").write_text(json.dumps(written(RELEASED)))
    assert module_in(tmp_path, LAYOUT) == QWEN_VL_SIZES["qwen2.5-vl-3b"]()


def test_longer_contexts_are_read_as_transformers_reads_them(tmp_path):
    """The model card of Qwen2.5-VL asks for this entry for texts beyond 32,768 tokens."""
    yarn = {
        "type": "yarn",
        "mrope_section": [16, 24, 24],
        "factor": 4,
        "original_max_position_embeddings": 32768,
    }
    (tmp_path / "config.json").write_text(json.dumps({**RELEASED, "rope_scaling": yarn}))
    module = module_in(tmp_path, LAYOUT)
    text = module.transformer
    assert (text.rope_scaling, text.rope_factor, text.rope_length) == ("yarn", 4.0, 32768)
    assert text.rope_sections == (16, 24, 24)
    described = json.loads(json.dumps(LAYOUT.describe(module)))
    assert LAYOUT.module_of(described, tmp_path) == module


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl', not qwen2_5_vl"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["sliding_attention"]}, "layer_types has 'sliding_attention'"),
        ({"vision_config": {"out_hidden_size": 1024}}, "out_dim=1024, but the transformer"),
        ({"rope_scaling": {"mrope_section": [16, 24]}}, r"rope_sections=\(16, 24\) sum to 40"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"vision_config": {"in_chans": 1}}, "in_chans is 1"),
        ({"vision_config": {"rope_parameters": {"rope_theta": 500.0}}}, "rope_theta is 500"),
        ({"vision_config": {"window_size": 100}}, "window_size=100 is not a multiple"),
        ({"vision_config": {"fullatt_block_indexes": 7}}, "fullatt_block_indexes is 7"),
    ],
)
def test_a_config_of_another_model_is_refused_in_one_line(tmp_path, changes, message):
    vision = {**RELEASED["vision_config"], **changes.get("vision_config", {})}
    config = {**RELEASED, **changes, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message) as error:
        module_in(tmp_path, LAYOUT)
    assert str(tmp_path / "config.json") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": True}, "unlike qkv_bias=True, qk_norm=True"),
        ({"logit_softcap": 30.0}, "logit_softcap=30.0"),
        ({"head_dim": 64, "rope_sections": (8, 12, 12)}, "has no head_dim, so heads=16"),
    ],
)
def test_what_config_json_cannot_say_is_not_written(changes, message):
    with pytest.raises(ValueError, match=message):
        LAYOUT.describe(QWEN_VL_SIZES["qwen2.5-vl-3b"](transformer=changes))
