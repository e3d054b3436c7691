"""However an exported model is loaded, offloaded, in half precision, quantised, it is the same."""

from __future__ import annotations

import json
import shutil
import sys

import accelerate
import numpy as np
import pytest
import torch
from transformers import AutoModel

from tests.data.samples import picture
from tests.runs.workdirs import write_run
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options

IMAGE = picture(1, 40, 40)


def load(folder, **options):
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **options).eval()


def outputs(model) -> dict[str, np.ndarray]:
    """Something of every part: words, a drawing with guidance, an edit, a reconstruction."""
    return {
        "words": np.array(model.answer([IMAGE], "how many dots?")),
        "generated": model.generate(torch.tensor([[20, 30, 40]]), max_new_tokens=3).numpy(),
        "drawn": np.asarray(model.draw("a red dot")[0], int),
        "edited": np.asarray(model.edit(IMAGE, "make it blue", steps=1)[0], int),
        "reconstructed": np.asarray(model.reconstruct(IMAGE)[0], int),
    }


@pytest.fixture(scope="module")
def plain(exported):
    model = load(exported)
    return model, outputs(model)


@pytest.fixture(scope="module")
def query(tmp_path_factory):
    """Pathway II, whose weights include queries of their own."""
    place = tmp_path_factory.mktemp("query")
    workdir = write_run(place / "run", unified__pathway="query", codec__compressor="mlp")
    return export(workdir, place / "out", Options())


def assert_same(found, expected, levels: int = 0) -> None:
    for name, value in expected.items():
        if value.dtype.kind == "U" or name == "generated":
            assert np.array_equal(found[name], value), name
        else:
            assert np.abs(found[name] - value).max() <= levels, name


# ---- offloading -------------------------------------------------------------------------------


@pytest.mark.parametrize("buffers", [False, True])
def test_weights_that_are_offloaded_by_accelerate_are_fetched(exported, plain, buffers):
    model = accelerate.cpu_offload(load(exported), execution_device="cpu", offload_buffers=buffers)
    assert model.device.type == "meta"
    assert_same(outputs(model), plain[1])


@pytest.mark.parametrize("everything", [True, False])
def test_weights_on_the_disk_are_fetched(exported, plain, tmp_path, everything):
    places = dict.fromkeys((name for name, _ in plain[0].named_children()), "cpu")
    places |= {"language_model": "disk", "pixel_decoder": "disk"}
    model = load(
        exported,
        device_map={"": "disk"} if everything else places,
        offload_folder=tmp_path / "offloaded",
    )
    assert model.language_model.lm_head.weight.device.type == "meta"
    assert_same(outputs(model), plain[1])


def test_the_query_pathway_is_offloaded_too(query):
    expected = outputs(load(query))
    model = accelerate.cpu_offload(load(query), execution_device="cpu", offload_buffers=True)
    assert_same(outputs(model), expected)


def test_each_layer_keeps_its_keys_where_they_are(plain):
    """Layers may be on several devices: no cache is made beforehand, and a drawing adds nothing."""
    model = plain[0]
    code = sys.modules[type(model.processor).__module__]
    context = model.read([model.processor.prefix([code.Words("a red dot")])])
    before = [layer.keys.clone() for layer in context.cache.layers]
    assert len(before) == model.config.num_hidden_layers
    field = model.begin_drawing(context, (2, 2))
    noise = torch.zeros(1, 4, model.config.codec["latent_dim"])
    first, second = (field(noise, torch.tensor([0.5])) for _ in range(2))
    assert torch.equal(first, second)
    for layer, keys in zip(context.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_layers_on_other_devices_get_copies_of_their_inputs_and_give_the_same(exported, plain):
    """Emulated: accelerate copies the tensors among a layer's inputs to the layer's device."""

    def copied(value):
        if isinstance(value, torch.Tensor):
            return value.clone()
        if isinstance(value, tuple | list):
            return type(value)(copied(one) for one in value)
        return value

    model = load(exported)
    for layer in model.language_model.model.layers:
        layer.register_forward_pre_hook(
            lambda _, args, options: (copied(args), {k: copied(v) for k, v in options.items()}),
            with_kwargs=True,
        )
    assert_same(outputs(model), plain[1])


# ---- precision and attention ------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "levels"), [(torch.float16, 3), (torch.bfloat16, 12)])
def test_half_precision_keeps_the_codec_in_fp32(exported, plain, dtype, levels):
    model = load(exported, dtype=dtype)
    kinds = {name: weight.dtype for name, weight in model.state_dict().items()}
    codec = ("compressor.", "decompressor.", "statistics.", "pixel_decoder.", "head.")
    for name, kind in kinds.items():
        kept = name.startswith((*codec, "embedding.time."))
        assert kind == (torch.float32 if kept else dtype), name
    found = outputs(model)
    for name in ("drawn", "edited", "reconstructed"):
        assert np.abs(found[name] - plain[1][name]).max() <= levels, name


def test_a_loaded_model_can_be_cast_as_a_whole(exported, plain):
    found = outputs(load(exported).half())
    assert np.abs(found["drawn"] - plain[1]["drawn"]).max() <= 12


def test_the_attention_that_is_asked_for_is_used(exported, plain, monkeypatch):
    model = load(exported, attn_implementation="eager")
    used = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    assert_same(outputs(model), plain[1], levels=1)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", used)
    model.set_attn_implementation("sdpa")
    assert_same(outputs(model), plain[1])


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "fancy"])
def test_an_attention_that_the_model_lacks_is_refused(exported, name):
    with pytest.raises((ValueError, ImportError)):
        load(exported, attn_implementation=name)


# ---- quantising libraries ---------------------------------------------------------------------


class Quantised(torch.nn.Module):
    """A layer as bitsandbytes makes it: int8 weights, and another class than torch's."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        scale = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((layer.weight / scale).round().to(torch.int8), False)
        self.scale, self.bias = scale, layer.bias

    def forward(self, x):
        return torch.nn.functional.linear(x, (self.weight * self.scale).to(x.dtype), self.bias)


def test_quantising_libraries_find_every_linear_layer(exported, plain):
    model = load(exported)
    linears = [name for name, one in model.named_modules() if type(one) is torch.nn.Linear]
    assert len(linears) == 55
    assert not [
        name
        for name, one in model.named_modules()
        if isinstance(one, torch.nn.Linear) and type(one) is not torch.nn.Linear
    ]
    for name in linears:
        if name.startswith(("language_model.model", "vision_model", "connector")):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Quantised(model.get_submodule(name)))
    found = outputs(model)
    assert np.abs(found["drawn"] - plain[1]["drawn"]).max() < 40


# ---- what is passed on ------------------------------------------------------------------------


def test_revision_subfolder_and_token_reach_the_processor(exported, monkeypatch, plain):
    seen = []
    kind = type(plain[0])
    code = sys.modules[kind.__base__.__module__]
    read = code.PreTrainedTokenizerFast.from_pretrained
    monkeypatch.setattr(
        code.PreTrainedTokenizerFast,
        "from_pretrained",
        lambda name, **options: seen.append(options) or read(name, **options),
    )
    outer = exported.with_name("outer")
    shutil.copytree(exported, outer / "inner", dirs_exist_ok=True)
    model = kind.from_pretrained(outer, subfolder="inner", revision="main", token="secret")
    assert model.processor.stops == plain[0].processor.stops
    assert seen == [{"subfolder": "inner", "revision": "main", "token": "secret"}]


def test_a_model_without_its_processor_says_so_when_it_needs_one(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    model = load(folder)
    assert model(torch.tensor([[20, 30]])).logits.shape[1] == 2
    with pytest.raises(ValueError, match="no tokenizer and no image processor"):
        model.draw("a dot")


def test_a_damaged_tokenizer_is_not_taken_for_a_missing_one(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "damaged")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting property name"):
        load(folder)


def test_the_config_has_the_names_that_tools_look_for(exported, plain):
    config = json.loads((exported / "config.json").read_text())
    language = config["language"]
    assert config["hidden_size"] == plain[0].config.hidden_size == language["width"]
    assert config["vocab_size"] == plain[0].config.vocab_size == language["vocab_size"]
    assert plain[0].config.num_hidden_layers == language["depth"]
