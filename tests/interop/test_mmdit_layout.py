"""Stable Diffusion 3 in diffusers' layout: folders go to JAX and back without a changed bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.mmdit_twin import SMALL, VARIANTS, twin_of
from unicom_jax.config import ConfigError
from unicom_jax.interop.folders import check_model, module_in, read_model, write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.layouts.mmdit import CLASS, describe, module_of
from unicom_jax.interop.tensors import WeightsError, open_tensors
from unicom_jax.models.mmdit import MMDIT_SIZES

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

LAYOUT = LAYOUTS["sd3"]


def tensors_of(folder):
    tensors = open_tensors(folder, LAYOUT.stem)
    return {name: tensors.read(name) for name in tensors.facts}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_folder_comes_back_bit_for_bit(tmp_path, name, dtype):
    given, back = tmp_path / "given", tmp_path / "back"
    twin, shard = twin_of(VARIANTS[name]), 20_000
    twin = twin.to(torch.bfloat16) if dtype == "BF16" else twin
    twin.save_pretrained(given, max_shard_size=shard)
    assert len(list(given.glob("*.safetensors"))) > 1

    module = module_in(given, LAYOUT)
    assert module == VARIANTS[name]
    params = read_model(given, LAYOUT, module)
    write_model(back, LAYOUT, module, params, dtype=dtype, shard_bytes=shard)

    before, after = tensors_of(given), tensors_of(back)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and np.array_equal(tensor, after[key]), key


def test_a_folder_without_its_table_of_places_is_refused(tmp_path):
    twin_of(SMALL).save_pretrained(tmp_path)
    path = tmp_path / f"{LAYOUT.stem}.safetensors"
    tensors = load_file(path)
    del tensors["pos_embed.pos_embed"]
    save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"lacks pos_embed\.pos_embed; it is") as error:
        check_model(tmp_path, LAYOUT, SMALL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", MMDIT_SIZES)
def test_a_published_size_is_recognised_by_its_description(name):
    module = MMDIT_SIZES[name]()
    found = json.loads(json.dumps(describe(module)))
    assert module_of(found, "config.json") == module


def test_keys_that_older_files_lack_have_the_defaults_of_diffusers():
    with torch.device("meta"):
        default = diffusers.SD3Transformer2DModel()
    module = module_of({"_class_name": CLASS}, "config.json")
    assert module == module_of({"_class_name": CLASS, **default.config}, "config.json")
    assert describe(module).items() >= {"num_layers": 18, "pos_embed_max_size": 96}.items()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "_class_name is 'FluxTransformer2DModel'"),
        ({"quantization_config": {}}, "quantization_config is {}, which is not supported"),
        ({"num_layers": "two"}, "num_layers is 'two'; it has to be like 18"),
        ({"dual_attention_layers": [1, 2]}, "only the first layers may have a second attention"),
        ({"dual_attention_layers": [0, 1, 2, 3]}, r"less than depth \(dual_attention_layers"),
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'"),
        ({"out_channels": 6}, "out_channels is 6, but only 3 is supported"),
        ({"caption_projection_dim": 24}, "caption_projection_dim is 24, but only 16"),
    ],
)
def test_a_model_that_ours_cannot_stand_for_is_refused(change, words):
    with pytest.raises(ConfigError, match=f"^given/config.json: .*{words}") as error:
        module_of(describe(SMALL) | change, "given/config.json")
    assert "\n" not in str(error.value)
