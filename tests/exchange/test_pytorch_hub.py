"""An exported model does what transformers' users expect of every model; so do parts alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, GenerationConfig

from data_pipelines.build import image_policy
from data_pipelines.images import prepare
from tests.data.samples import picture
from tests.runs.workdirs import write_run
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.interop.pytorch.image_processing_unicom import UnicomImageProcessor, patchify
from unicom_jax.runs.weights import describe


@pytest.fixture
def model(exported):
    return AutoModel.from_pretrained(exported, trust_remote_code=True)


# ---- saved again ------------------------------------------------------------------------------


def test_a_saved_model_stands_alone(model, tmp_path):
    target, images = tmp_path / "saved", [picture(n, 32, 32) for n in range(2)]
    model.save_pretrained(target)
    again = AutoModel.from_pretrained(target, trust_remote_code=True)
    assert again.config.name_or_path == str(target)
    assert again.caption(images) == model.caption(images)
    drawn = [np.asarray(one.draw(["a red dot"], seed=1)[0]) for one in (model, again)]
    np.testing.assert_array_equal(*drawn)
    assert AutoTokenizer.from_pretrained(target).encode("a red dot")
    assert AutoImageProcessor.from_pretrained(target, trust_remote_code=True).size == 32


def test_defaults_that_were_changed_are_saved(model, tmp_path):
    model.defaults.flow_steps = 7
    model.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path, trust_remote_code=True).defaults.flow_steps == 7


def test_a_process_that_is_not_the_main_one_writes_nothing(model, tmp_path):
    model.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


# ---- hooks ------------------------------------------------------------------------------------


def test_input_embeddings_can_be_taken_and_put(model):
    before, ids = model.get_input_embeddings(), torch.tensor([[1, 20, 30]])
    expected = model(ids).logits
    doubled = torch.nn.Embedding.from_pretrained(2 * before.weight.detach())
    model.set_input_embeddings(doubled)
    assert model.get_input_embeddings() is doubled
    assert not torch.allclose(model(ids).logits, expected)
    model.set_input_embeddings(before)
    assert torch.equal(model(ids).logits, expected)


def test_the_vocabulary_keeps_its_size(model):
    table = model.get_input_embeddings()
    assert model.resize_token_embeddings() is table
    assert model.resize_token_embeddings(table.num_embeddings) is table
    with pytest.raises(ValueError, match=r"has \d+ words and keeps them"):
        model.resize_token_embeddings(table.num_embeddings + 8)
    with pytest.raises(ValueError, match="keeps them"):
        model.resize_token_embeddings(pad_to_multiple_of=table.num_embeddings - 1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_runs_layers_twice_and_changes_no_gradient(model, reentrant):
    model.train()
    counted = (model.language_model.model.layers[0].mlp, model.vision_model.encoder.layers[0].mlp)
    calls = []
    for module in counted:
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
    patches = torch.from_numpy(patchify(picture(1, 32, 32), 16))[None]

    def gradients():
        model.zero_grad()
        calls.clear()
        words = model(torch.tensor([[1, 20, 30, 40]])).logits.square().mean()
        (words + model.look(patches, (2, 2)).square().mean()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert len(calls) == 2
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = gradients()
    assert [calls.count(module) for module in counted] == [2, 2]
    assert plain.keys() == checkpointed.keys() and any("vision_model" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)
    model.gradient_checkpointing_disable()
    gradients()
    assert len(calls) == 2


# ---- the image processor ----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "array"), [("pt", torch.Tensor), ("np", np.ndarray)])
def test_pictures_of_several_sizes_come_as_one_array(kind, array):
    images = [picture(1, 16, 200), picture(2, 32, 32)]
    processor = UnicomImageProcessor("naflex", max_tokens=6)
    seen = processor(images, return_tensors=kind)
    assert all(isinstance(value, array) for value in seen.values())
    grids = np.asarray(seen["image_grids"])
    assert grids.shape == (2, 1, 2)
    for row, image in enumerate(images):
        patches = patchify(processor.prepare(image), 16)
        assert grids[row, 0].prod() == len(patches)
        values = np.asarray(seen["pixel_values"])[row]
        np.testing.assert_allclose(values[: len(patches)], patches / 127.5 - 1, atol=1e-6)
        assert not values[len(patches) :].any()


# ---- parts alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_a_language_model_alone_knows_where_to_stop(tmp_path, kind):
    norms = {
        "unified__transformer__qk_norm": kind == "qwen3",
        "unified__transformer__qkv_bias": kind == "qwen2",
    }
    workdir = write_run(tmp_path / "run", **norms)
    folder = export(workdir, tmp_path / kind, Options(to=kind))
    found, tokenizer = GenerationConfig.from_pretrained(folder), describe(workdir)[1]
    assert tokenizer.turn_end in found.eos_token_id
    assert tokenizer.end_of_document in found.eos_token_id
    assert found.pad_token_id == tokenizer.end_of_document


def test_an_encoder_of_one_size_comes_with_its_image_processor(run, tmp_path):
    folder = export(run, tmp_path / "siglip2", Options(to="siglip2"))
    image = picture(1, 50, 40)
    seen = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="np")["pixel_values"]
    expected = prepare(image, image_policy(describe(run)[0]), 16, 1) / 127.5 - 1.0
    np.testing.assert_allclose(seen[0].transpose(1, 2, 0), expected, atol=1e-6)


def test_a_naflex_encoder_comes_with_its_image_processor(tmp_path):
    naflex = {"data__policy": "naflex", "data__max_tokens": 6, "encoder__naflex": True}
    workdir = write_run(tmp_path / "run", **naflex)
    folder = export(workdir, tmp_path / "siglip2", Options(to="siglip2"))
    image = picture(1, 50, 80)
    seen = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="np")
    prepared = prepare(image, image_policy(describe(workdir)[0]), 16, 1)
    expected = patchify(prepared, 16) / 127.5 - 1.0
    assert seen["pixel_values"].shape == (1, 6, 768)
    assert seen["spatial_shapes"][0].tolist() == [prepared.shape[0] // 16, prepared.shape[1] // 16]
    np.testing.assert_allclose(seen["pixel_values"][0, : len(expected)], expected, atol=1e-6)
