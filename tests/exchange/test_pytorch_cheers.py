"""A run of the family Cheers, exported to PyTorch: the same function, and the way back."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from data_pipelines.segments import SOURCE, UNDERSTOOD, Image, Text
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
from tests.models.torch_weights import assert_close
from tests.runs.workdirs import begin_run, write_run
from tests.tiny import tiny_config
from unicom_jax.cli import main
from unicom_jax.core.batch import Role
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.families.build import build_autoencoder, build_unified
from unicom_jax.inference import engine
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.verify import LIMITS

SHARED = {
    "data__patch": 4,
    "data__image_size": 16,
    "data__scenes__sizes": ((16, 16),),
    "autoencoder__latent_channels": 3,
    "autoencoder__widths": (8, 16),
    "autoencoder__norm_groups": 4,
    "unified__pathway": "cheers",
    "unified__fold": 2,
    # A random tied head repeats the last token for ever.
    "unified__transformer__tied_head": False,
}
# Each holds several choices that do not meet in the other.
CONFIGURATIONS = {
    "published": {
        "data__unconditional": "masked",
        "unified__image_positions": "plain",
        "unified__cheers__pixel_range": "unit",
        "unified__cheers__semantics__depth": 2,
        "sample__steps": 3,
        "sample__edit_start": 0.1,
    },
    "ablated": {
        "unified__fold": 1,
        "unified__time_shift": 0.0,
        "unified__prediction": "data",
        "unified__cheers__pixels": False,
        "unified__cheers__gate": False,
        "unified__cheers__norm": False,
        "unified__cheers__positions": "released",
        "sample__edit_start": 0.3,
    },
}


RNG = np.random.default_rng(7)


def written(workdir, name, **overrides):
    def modules(config):
        pretrained = {"pretrain": (build_unified(config), 0.3)}
        return {"autoencoder": (build_autoencoder(config), 0.3), **pretrained}

    own = {**SHARED, **CONFIGURATIONS[name], **overrides}
    config = tiny_config(evaluation__batch_size=2, **own)
    return begin_run(config, workdir, modules)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return written(tmp_path_factory.mktemp("cheers") / "run", "published")


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


def test_log_probabilities_of_captions_are_those_of_jax(generator, model):
    ours, theirs = both_log_probs(generator, model)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
    assert np.ptp(ours) > 1e-2  # the tokens are not all alike likely


def test_edits_of_the_released_grid_are_those_of_jax(generator, model):
    images, words = [picture(5, 16, 16), picture(6, 40, 24)], ["paint it green", "remove it"]
    options = {"steps": 5, "guidance": 2.0, "seed": 3}
    one = {"edit_start": 0.4, "grid": "released"}
    ours, even, noise = (
        np.asarray(generator.edit(images, words, **options, **own), int)
        for own in (one, {"edit_start": 0.4}, {"edit_start": 0.0})
    )
    theirs = np.asarray([np.asarray(p) for p in model.edit(images, words, **options, **one)], int)
    assert np.abs(theirs - ours).max() <= LIMITS["edited pictures"][0]
    for other in (even, noise):
        assert np.abs(other - ours).max() > LIMITS["edited pictures"][0]


def test_by_semantics_alone_it_draws_as_an_export_whose_gate_is_zero(generator, model):
    prompts, options = ["a red dot", "two stars"], {"steps": 3, "guidance": 2.0, "seed": 1}
    alone, programs = generator.without_details, engine.draw._cache_size()
    whole, ours = (
        np.asarray([one.image for one in each.draw(prompts, **options)], int)
        for each in (generator, alone)
    )
    assert engine.draw._cache_size() <= programs + 1  # both run the same
    last = model.head.gate.fc2
    held = {name: value.clone() for name, value in last.state_dict().items()}
    try:
        with torch.no_grad():
            for weight in last.parameters():
                weight.zero_()
        theirs = np.asarray([np.asarray(one) for one in model.draw(prompts, **options)], int)
    finally:
        last.load_state_dict(held)
    assert np.abs(theirs - ours).max() <= LIMITS["drawn pictures"][0]
    assert np.abs(whole - ours).max() > LIMITS["drawn pictures"][0]


def test_an_edit_of_another_size_cannot_begin_with_its_source(model):
    wide = model.processor.image_processor
    said = [[theirs(model, s) for s in (Image(picture(1, 16, 16), SOURCE), Text("green"))]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide, "policy", "bucket")
        with pytest.raises(ValueError, match=r"edit_start=0.1 begins with .* \(16, 16\)"):
            model.paint(said, size=(8, 8))


def test_a_model_of_the_other_family_is_loaded_beside_it(model, exported, tmp_path):
    # transformers keeps code by the name of the folder, and models by their configuration's class.
    unicom = load(export(write_run(tmp_path / "run"), tmp_path / exported.name, Options()))
    assert [type(one).__name__ for one in (model, unicom)] == ["UnicomCheersModel", "UnicomModel"]
    assert type(load(exported)).__name__ == "UnicomCheersModel"


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """A run with the paper's ablations and its export, both loaded."""
    workdir = written(tmp_path_factory.mktemp("ablated") / "run", "ablated")
    exported = export(workdir, workdir.with_name("exported"), Options())
    return Generator.load(workdir), load(exported)


def test_the_papers_ablations_are_exported_too(ablated):
    assert_same_outputs(*ablated)


@pytest.mark.parametrize("grid", [(1, 1), (1, 3), (4, 4)])
def test_released_positions_are_those_of_jax_for_any_number_of_tokens(ablated, grid):
    generator, model = ablated
    head, count, normal = generator.models.unified.images.head, grid[0] * grid[1], RNG.normal
    assert (head.positions, head.fold) == ("released", 1)
    sizes = (head.semantics.width, head.details.width)
    hidden, embedded = (np.float32(normal(size=(1, count, size))) for size in sizes)
    inputs = (hidden, np.float32([0.4]), embedded)
    run, weights = jax.jit(head), generator.params["unified"]["head"]
    ours = run(weights, *inputs, np.array([grid], np.int32)).prediction
    with torch.no_grad():
        theirs = model.head(*map(torch.from_numpy, inputs), grid)
    assert_close(theirs, ours, 2e-5)


def test_an_export_comes_back_bit_for_bit_as_a_run(run, exported, tmp_path):
    workdir = tmp_path / "again"
    assert main(["import", f"--model={exported}", f"--workdir={workdir}"]) == 0
    assert_same_run(run, workdir)
    assert_same_weights(exported, export(workdir, tmp_path / "exported", Options()))


def test_the_folder_names_its_own_model_and_has_its_code_alone(exported):
    description = json.loads((exported / "config.json").read_text())
    assert description["architectures"] == ["UnicomCheersModel"]
    assert description["pathway"]["kind"] == "cheers"
    names = {path.name for path in exported.glob("modeling_*.py")}
    assert "modeling_unicom_cheers.py" in names and "modeling_unicom_pathway.py" not in names
    card = (exported / "README.md").read_text()
    assert "Cheers family" in card and "diffusers for the autoencoder" in card
    assert "compressor" not in card


# ---- sequences --------------------------------------------------------------------------------

TALK = (
    [Image(picture(1, 40, 24), UNDERSTOOD), Text("how many dots?")],
    [Image(picture(2, 32, 32), SOURCE), Text("paint it green")],
)


@pytest.mark.parametrize("segments", TALK)
@pytest.mark.parametrize("form", ["prefix", "wordless"])
def test_folded_pictures_and_masked_words_are_written_slot_for_slot_as_in_jax(
    generator, model, segments, form
):
    build = {"prefix": build_prefix, "wordless": build_unconditional}[form]
    expected = build(segments, generator.tokenizer, generator.sequence, VISION_START)
    prefix = getattr(model.processor, form)([theirs(model, s) for s in segments], VISION_START)
    np.testing.assert_array_equal(prefix.tokens, expected.tokens)
    np.testing.assert_array_equal(prefix.positions, expected.positions)
    np.testing.assert_array_equal(prefix.sees, expected.mask.context_stop)
    assert prefix.next_position == expected.next_position
    (block,) = prefix.blocks
    assert block.grid == (2, 2)  # of 4 x 4 patches
    assert np.count_nonzero(np.asarray(expected.roles) != Role.TEXT) == 4


# ---- use --------------------------------------------------------------------------------------


def test_generate_answers_as_the_models_own_method_does(exported, model):
    processor = AutoProcessor.from_pretrained(exported, trust_remote_code=True)
    image, question = picture(3, 30, 20), "how many dots?"
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 4
    standard = load(exported, AutoModelForImageTextToText)
    tokens = standard.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.words_of(tokens.tolist()) == model.answer(image, question)[0]


def test_gradients_reach_the_trained_parts_and_not_the_autoencoder(model):
    image, processor = picture(4, 16, 16), model.processor
    inputs = processor(images=[image], text="how many dots?", return_tensors="pt")
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.image_token_id, -100)
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert reached == {"decoder", "vision_model", "projector", "language_model"}


def test_weights_and_statistics_that_are_offloaded_by_accelerate_are_fetched(exported, model):
    assert_same_offloaded(exported, model, buffers=True)


def test_bfloat16_keeps_the_autoencoder_and_the_head_and_stays_near(exported, model):
    half = load(exported, dtype=torch.bfloat16)
    kinds = {name.split(".")[0]: p.dtype for name, p in half.named_parameters()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {
        "autoencoder", "decoder", "head",
    }  # fmt: skip
    images = [picture(1, 16, 16)]
    one, other = (np.asarray(m.reconstruct(images)[0], int) for m in (model, half))
    assert np.abs(one - other).max() <= 1  # both in fp32
    assert half.draw(["a dot"])[0].size == (16, 16) and len(half.caption(images)) == 1
