"""FLUX in diffusers' layout: folders go to JAX and back without a changed bit."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from tests.models.flux_twin import SMALL, twin_of
from tests.models.test_flux import MODEL, ours, theirs
from tests.models.torch_weights import assert_close
from unicom_jax.interop.layouts.flux import CLASS, STEM, describe, module_of, table
from unicom_jax.interop.tensors import WeightsError, open_tensors
from unicom_jax.interop.transfer import load_weights, store_weights
from unicom_jax.models.flux import FLUX_SIZES

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def tensors_of(folder):
    tensors = open_tensors(folder, STEM)
    return {name: tensors.read(name) for name in tensors.facts}


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("shard", [None, "60KB"], ids=["whole", "shards"])
def test_a_folder_comes_back_bit_for_bit_and_diffusers_computes_the_same(tmp_path, dtype, shard):
    given, back = tmp_path / "given", tmp_path / "back"
    twin = twin_of(SMALL)
    if dtype == "BF16":
        twin = twin.to(torch.bfloat16)
    twin.save_pretrained(given, **({"max_shard_size": shard} if shard else {}))
    assert len(list(given.glob("*.safetensors"))) > (1 if shard else 0)

    module = module_of(json.loads((given / "config.json").read_text()), given / "config.json")
    assert module == SMALL
    params = load_weights(open_tensors(given, STEM), table(module), module.specs())
    back.mkdir()
    (back / "config.json").write_text(json.dumps(describe(module)))
    size = 60_000 if shard else 10**9
    store_weights(
        back, table(module), module.specs(), params, dtype=dtype, stem=STEM, shard_bytes=size
    )

    before, after = tensors_of(given), tensors_of(back)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and np.array_equal(tensor, after[name]), name
    again = diffusers.FluxTransformer2DModel.from_pretrained(back)
    with torch.no_grad():
        reference = theirs(again.float())
    assert_close(ours(module, jax.tree.map(np.asarray, params)), reference, MODEL)
    with torch.no_grad():
        assert torch.equal(reference, theirs(twin.float()))


@pytest.mark.parametrize("name", FLUX_SIZES)
def test_a_published_size_is_recognised_by_its_description(name):
    module = FLUX_SIZES[name]()
    assert module_of(describe(module), "config.json") == module


def test_keys_that_older_files_lack_have_the_defaults_of_diffusers():
    with torch.device("meta"):
        default = diffusers.FluxTransformer2DModel()
    assert set(default.config) > {"num_layers", "axes_dims_rope"}
    module = module_of({"_class_name": CLASS}, "config.json")
    assert module == module_of({"_class_name": CLASS, **default.config}, "config.json")
    assert module == FLUX_SIZES["flux.1-schnell"]()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "SD3Transformer2DModel"}, "_class_name is 'SD3Transformer2DModel'"),
        ({"patch_size": 2}, "patch_size is 2, but only 1 is supported"),
        ({"quantization_config": {}}, "quantization_config is {}, which is not supported"),
        ({"num_layers": "two"}, "num_layers is 'two'; restore the file"),
        ({"axes_dims_rope": [4, 4, 4]}, r"sum to it \(axes_dims_rope, attention_head_dim\)"),
    ],
)
def test_a_flux_that_ours_cannot_stand_for_is_refused(change, words):
    with pytest.raises(WeightsError, match=f"^given/config.json: .*{words}") as error:
        module_of(describe(SMALL) | change, "given/config.json")
    assert "\n" not in str(error.value)
