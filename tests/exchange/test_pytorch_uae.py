"""A run of the family UAE, exported to PyTorch: the same function, and the way back."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from data_pipelines.images import patchify
from data_pipelines.segments import DRAWN, SOURCE, UNDERSTOOD, Image, Text
from data_pipelines.sequences.dropout import build_unconditional
from data_pipelines.sequences.sequence import VISION_START, build_prefix
from tests.data.samples import picture
from tests.exchange.log_probs import both_log_probs
from tests.exchange.own_types import theirs
from tests.exchange.same import (
    assert_same_offloaded,
    assert_same_outputs,
    assert_same_run,
    assert_same_weights,
    load,
)
from tests.runs.workdirs import begin_run
from tests.tiny import UAE, tiny_config
from unicom_jax.cli import main
from unicom_jax.core.batch import Role
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.families.build import build_autoencoder, build_unified
from unicom_jax.inference import engine
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.verify import PROMPTS
from unicom_jax.interop.pytorch.modeling_unicom_qwen_vision import MEAN, QwenVision
from unicom_jax.interop.pytorch.modeling_unicom_uae import resized


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    def modules(config):
        drawer = {"longcap": (build_unified(config), 0.3)}
        return {"autoencoder": (build_autoencoder(config), 0.3), **drawer}

    # A random tied head repeats the last token for ever.
    own = {**UAE, "stages": ("longcap",), "unified__transformer__tied_head": False}
    config = tiny_config(evaluation__batch_size=2, sample__edit_start=0.2, **own)
    return begin_run(config, tmp_path_factory.mktemp("uae") / "run", modules)


@pytest.fixture(scope="module")
def exported(run):
    return export(run, run.with_name("exported"), Options())


@pytest.fixture(scope="module")
def model(exported):
    return load(exported)


@pytest.fixture(scope="module")
def generator(run):
    return Generator.load(run)


def test_every_output_is_that_of_jax(generator, model):
    assert_same_outputs(generator, model)


def test_drawn_latents_are_those_of_jax(generator, model, monkeypatch):
    """Two prompts of different lengths, each with and without its words."""
    ours, painted = [], []

    def paint(models, params, latents, *rest, paint=engine.paint, **options):
        ours.append(np.asarray(latents))
        return paint(models, params, latents, *rest, **options)

    def keep(latents, *rest, painted_by=model.painted):
        painted.append(latents.numpy())
        return painted_by(latents, *rest)

    monkeypatch.setattr(engine, "paint", paint)
    monkeypatch.setattr(model, "painted", keep)
    generator.draw(PROMPTS, seed=0)
    model.draw(PROMPTS, seed=0)
    (one,), (other,) = ours, painted
    assert np.abs(other - one).max() <= 1e-4 * np.abs(one).max()
    assert np.abs(one[0] - one[1]).max() > 1e-2


def test_log_probabilities_of_captions_are_those_of_jax(generator, model):
    ours, theirs = both_log_probs(generator, model)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
    assert np.ptp(ours) > 1e-2  # the tokens are not all alike likely


def test_an_export_comes_back_bit_for_bit_as_a_run(run, exported, tmp_path):
    workdir = tmp_path / "again"
    assert main(["import", f"--model={exported}", f"--workdir={workdir}"]) == 0
    assert_same_run(run, workdir)
    assert_same_weights(exported, export(workdir, tmp_path / "exported", Options()))


def test_the_folder_has_the_code_and_the_card_of_the_family(exported):
    names = {path.name for path in exported.glob("modeling_*.py")}
    assert {"modeling_unicom_uae.py", "modeling_unicom_sd3.py"} <= names
    assert not names & {"modeling_unicom_flux.py", "modeling_unicom_cheers.py"}
    card = " ".join((exported / "README.md").read_text().split())
    assert "Qwen2.5-VL family reads words" in card and "| MM-DiT |" in card
    assert "the model keeps the autoencoder in float32" in card and "text tower" not in card


def test_the_reader_alone_is_a_qwen_vl_of_transformers(run, model, tmp_path):
    folder = export(run, tmp_path / "reader", Options(to="qwen2.5-vl"))
    reader = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pixels = images([picture(5, 32, 32)], return_tensors="pt")
    assert pixels["image_grid_thw"].tolist() == [[1, 4, 4]]
    inputs = model.processor(images=[picture(5, 32, 32)], text="why?", return_tensors="pt")
    ids = inputs["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == reader.config.image_token_id
    kinds = (ids == reader.config.image_token_id).int()
    with torch.no_grad():
        expected = model(**inputs).logits
        found = reader(input_ids=ids, mm_token_type_ids=kinds, **pixels).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not list(tmp_path.rglob("*.py"))  # it is a class of transformers


# ---- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 6), (2, 4), (6, 2)])
def test_the_tower_is_that_of_transformers_where_windows_are_cut_off(grid):
    shared = {"depth": 2, "window_size": 16, "patch_size": 4}
    own = QwenVision(
        **shared, width=16, heads=2, mlp_dim=12, out_dim=8, frames=2, merge=2, whole_layers=(1,)
    )
    config = Qwen2_5_VLVisionConfig(
        **shared, hidden_size=16, num_heads=2, intermediate_size=12, out_hidden_size=8,
        fullatt_block_indexes=[1],
    )  # fmt: skip
    torch.manual_seed(0)
    other = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    with torch.no_grad():
        for weight in other.parameters():
            weight.normal_(std=0.3)
    own.load_state_dict(other.state_dict())
    levels = torch.from_numpy(np.stack([patchify(picture(7, 4 * grid[0], 4 * grid[1]), 4)] * 2))

    rows, cols = grid[0] // 2, grid[1] // 2
    squares = levels[0].reshape(rows, 2, cols, 2, 4, 4, 3).transpose(1, 2).float() / 255
    colours = (squares - torch.tensor(MEAN)) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )  # (row, col, row, col, y, x, colour)
    patches = colours.movedim(-1, 4)[..., None, :, :].expand(*[-1] * 5, 2, -1, -1)
    with torch.no_grad():
        expected = other(patches.reshape(grid[0] * grid[1], -1), torch.tensor([[1, *grid]]))
        found = own(levels, grid)
    torch.testing.assert_close(found[0], expected.pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0], found[1])


def test_pictures_are_scaled_for_the_tower_as_in_jax():
    changed = {"unified__uae__vision__patch_size": 14, "unified__uae__vision__window_size": 28}
    config = tiny_config(**UAE | changed | {"data__patch": 16, "data__image_size": 64})
    patches = patchify(picture(3, 64, 64), 16)[None]
    expected = jax.jit(build_unified(config).images._resized)(jnp.asarray(patches))
    found = resized(torch.from_numpy(patches).float(), (4, 4), 16, 14).numpy()
    assert (found != np.asarray(expected)).mean() < 1e-3  # halves are rounded either way
    assert np.abs(found - np.asarray(expected, np.float32)).max() <= 1.0


# ---- sequences ----------------------------------------------------------------------------------

TALK = (
    [Image(picture(1, 40, 24), UNDERSTOOD), Text("how many dots?")],
    [Text("a red dot"), Image(picture(2, 32, 32), DRAWN), Text("one more"), Text("and a blue one")],
    [Image(picture(2, 32, 32), SOURCE), Text("paint it green")],
)


@pytest.mark.parametrize("segments", TALK)
@pytest.mark.parametrize("form", ["prefix", "wordless"])
def test_pictures_and_words_are_written_slot_for_slot_as_in_jax(generator, model, segments, form):
    build = {"prefix": build_prefix, "wordless": build_unconditional}[form]
    expected = build(segments, generator.tokenizer, generator.sequence, VISION_START)
    prefix = getattr(model.processor, form)([theirs(model, s) for s in segments], VISION_START)
    np.testing.assert_array_equal(prefix.tokens, expected.tokens)
    np.testing.assert_array_equal(np.array(prefix.positions)[:, 1:], expected.positions)
    np.testing.assert_array_equal(prefix.sees, expected.mask.context_stop)
    assert prefix.next_position == expected.next_position
    assert np.count_nonzero(np.asarray(expected.roles) != Role.TEXT) == 4


# ---- use ----------------------------------------------------------------------------------------


def test_generate_answers_as_the_models_own_method_does(exported, model):
    processor = AutoProcessor.from_pretrained(exported, trust_remote_code=True)
    asked = [(picture(3, 30, 20), "how many dots?"), (picture(4, 32, 32), "why?")]
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": i}, {"type": "text", "text": q}]}]
        for i, q in asked
    ]
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        padding=True,
    )  # fmt: skip
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 2 * 4
    standard = load(exported, AutoModelForImageTextToText)
    rows = standard.generate(**inputs, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    written = [processor.words_of(row.tolist()) for row in rows]
    assert written == model.answer(*map(list, zip(*asked, strict=True)))


def test_gradients_of_words_reach_the_tower_and_not_the_drawer(model):
    processor = model.processor
    inputs = processor(images=[picture(4, 32, 32)], text="how many dots?", return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.image_token_id, -100)
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert reached == {"visual", "language_model"}


@pytest.mark.parametrize("buffers", [False, True])
def test_weights_that_are_offloaded_by_accelerate_are_fetched(exported, model, buffers):
    assert_same_offloaded(exported, model, buffers)


def test_bfloat16_keeps_the_autoencoder_alone_and_draws(exported, model):
    half = load(exported, dtype=torch.bfloat16)
    kinds = {name.split(".")[0]: p.dtype for name, p in half.named_parameters()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {"autoencoder"}
    images = [picture(1, 32, 32)]
    one, other = (np.asarray(m.reconstruct(images)[0], int) for m in (model, half))
    np.testing.assert_array_equal(one, other)
    assert half.draw(["a dot"])[0].size == (32, 32) and len(half.caption(images)) == 1
