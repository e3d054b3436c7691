"""An exported model is a causal language model of transformers that also looks at pictures."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image as PilImage
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    DynamicCache,
    pipeline,
)

from tests.data.samples import picture
from tests.runs.workdirs import write_run
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options

MARK = "<|vision_start|><|image_pad|><|vision_end|>"
GREEDY = {"do_sample": False, "max_new_tokens": 4}


@pytest.fixture(scope="module")
def model(exported):
    return AutoModelForImageTextToText.from_pretrained(exported, trust_remote_code=True).eval()


@pytest.fixture(scope="module")
def processor(exported):
    return AutoProcessor.from_pretrained(exported, trust_remote_code=True)


@pytest.fixture(scope="module")
def images():
    return [PilImage.fromarray(picture(n, 30 + 7 * n, 40)) for n in range(3)]


def question(image, text="how many dots?"):
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def chat(processor, *conversations, **options):
    return processor.apply_chat_template(
        list(conversations),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
        **options,
    )


def new_words(inputs, outputs):
    return outputs[:, inputs["input_ids"].shape[1] :]


# ---- the processor ----------------------------------------------------------------------------


def test_the_processor_keeps_pictures_and_words(processor, images):
    inputs = chat(processor, question(images[0]))
    assert type(processor).__name__ == "UnicomProcessor"
    assert inputs.keys() == {"input_ids", "attention_mask", "pixel_values", "image_grids"}
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 4
    assert inputs["pixel_values"].shape == (1, 4, 768) and inputs["pixel_values"].abs().max() <= 1


def test_a_picture_may_be_named_by_its_file(model, processor, images, tmp_path):
    path = tmp_path / "picture.png"
    images[1].save(path)
    named = [{"type": "image", "path": str(path)}, {"type": "text", "text": "how many dots?"}]
    inputs = chat(processor, [{"role": "user", "content": named}])
    given = chat(processor, question(images[1]))
    assert all(torch.equal(inputs[name], given[name]) for name in given)
    assert model.caption(str(path)) == model.caption(images[1])


def test_the_chat_template_writes_what_the_models_own_methods_write(model, processor, images):
    code = sys.modules[type(model.processor).__module__]
    turns = [
        {"role": "user", "content": question(images[0])[0]["content"]},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "paint them"},
        {"role": "user", "content": " green"},
    ]
    segments = [
        code.Image(images[0]),
        code.Words("how many dots?"),
        code.Words("three", response=True),
        code.Words("paint them"),
        code.Words(" green"),
    ]
    expected = model.processor.prefix(segments)
    inputs = chat(processor, turns)
    ids = inputs["input_ids"][0].masked_fill(inputs["input_ids"][0] == processor.image_token_id, 0)
    assert ids.tolist() == expected.tokens
    positions = model.rotary_positions(inputs["input_ids"], None, inputs["image_grids"])
    assert positions[:, 0].T.tolist() == [list(place) for place in expected.positions]


def test_a_message_that_the_format_cannot_hold_is_refused(processor, images):
    for role, content, message in (
        ("tool", "x", "the roles of messages are"),
        ("assistant", question(images[0])[0]["content"], "of the user also images"),
    ):
        with pytest.raises(Exception, match=message):
            processor.apply_chat_template([{"role": role, "content": content}], tokenize=False)


def test_words_of_a_system_open_the_users_turn(processor):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>Be brief.\nhello<|im_end|>"


def test_a_text_without_a_mark_is_a_turn_about_its_picture(processor, images):
    bare = processor(images=images[0], text="how many dots?", return_tensors="pt")
    written = chat(processor, question(images[0]))
    assert all(torch.equal(bare[name], written[name]) for name in written)


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        (["a", MARK], 2, "have 1 marks"),
        ([MARK], 2, "have 1 marks"),
        (None, 1, "give text too"),
    ],
)
def test_pictures_and_marks_have_to_agree(processor, images, text, count, message):
    with pytest.raises(ValueError, match=message):
        processor(images=images[:count], text=text)


def test_slots_that_are_not_the_processors_are_refused(model, processor, images):
    inputs = chat(processor, question(images[0]))
    inputs["image_grids"] = inputs["image_grids"] * 2
    with pytest.raises(ValueError, match="row 0 has 4 slots for pictures, its 1 pictures take 16"):
        model(**inputs)


# ---- forward ----------------------------------------------------------------------------------


def test_forward_gives_a_loss_states_and_tuples_where_asked(model, processor):
    inputs = processor.tokenizer("a red dot", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    out = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1], inputs["input_ids"][0, 1:])
    torch.testing.assert_close(out.loss, expected)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    plain = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    torch.testing.assert_close(plain[0], expected)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, out.logits)
    torch.testing.assert_close(
        model(**inputs, logits_to_keep=1).logits, out.logits[:, -1:], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "either input_ids or inputs_embeds"),
        ({"output_attentions": True}, "attention weights are not kept"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, "must be"),
    ],
)
def test_what_forward_cannot_do_is_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": torch.tensor([[20, 30, 40]]), **change})


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, processor, images, side):
    texts = [f"{MARK}a dot", f"a longer text {MARK} with {MARK} two pictures"]
    both = processor(images, texts, padding=True, padding_side=side, return_tensors="pt")
    logits = model(**both).logits
    for row, own in enumerate((images[:1], images[1:])):
        alone = processor(own, texts[row], return_tensors="pt")
        kept = logits[row][both["attention_mask"][row].bool()]
        torch.testing.assert_close(kept, model(**alone).logits[0], atol=2e-5, rtol=1e-5)


def test_a_cache_gives_what_one_pass_gives(model, processor, images):
    inputs = chat(processor, question(images[0]))
    ids, whole = inputs["input_ids"], model(**inputs).logits
    positions = model.rotary_positions(ids, None, inputs["image_grids"])
    cut, cache = ids.shape[1] - 3, DynamicCache()
    first = {name: inputs[name] for name in ("pixel_values", "image_grids")}
    before = model(ids[:, :cut], past_key_values=cache, **first).logits
    after = model(ids[:, cut:], past_key_values=cache, position_ids=positions[:, :, cut:]).logits
    torch.testing.assert_close(torch.cat([before, after], 1), whole, atol=2e-5, rtol=1e-5)


def test_gradients_reach_the_words_and_the_encoder(model, processor, images):
    inputs = chat(processor, question(images[0]))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == processor.image_token_id, -100)
    model.zero_grad()
    model(**inputs, labels=labels).loss.backward()
    for part in (model.language_model.lm_head, model.vision_model.embeddings.patch_embedding):
        assert part.weight.grad.abs().sum() > 0
    model.zero_grad()


# ---- generate ---------------------------------------------------------------------------------


def test_generate_with_pictures_writes_what_answer_writes(model, processor, images):
    ours = model.answer(images, "how many dots?", max_tokens=4)
    inputs = chat(processor, *(question(image) for image in images))
    written = new_words(inputs, model.generate(**inputs, **GREEDY))
    assert [model.processor.words_of(row) for row in written.tolist()] == ours


def test_generate_does_not_depend_on_padding_cache_or_batch(model, processor, images):
    asked = [question(images[0]), question(images[1], "what colour is the dot on the left?")]
    inputs = chat(processor, *asked)
    together = new_words(inputs, model.generate(**inputs, **GREEDY))
    for options in ({"use_cache": False}, {"cache_implementation": "static"}):
        other = new_words(inputs, model.generate(**inputs, **GREEDY, **options))
        assert torch.equal(together, other)
    for row, conversation in enumerate(asked):
        alone = chat(processor, conversation)
        written = new_words(alone, model.generate(**alone, **GREEDY))
        assert torch.equal(written[0], together[row, : written.shape[1]])


def test_beams_and_several_answers_keep_their_pictures(model, processor, images):
    inputs = chat(processor, question(images[0]), question(images[1]))
    one = new_words(inputs, model.generate(**inputs, **GREEDY))
    beams = model.generate(**inputs, **GREEDY, num_beams=2, num_return_sequences=2)
    assert beams.shape[0] == 4
    several = model.generate(
        **inputs, max_new_tokens=4, do_sample=True, top_k=1, num_return_sequences=2
    )
    assert torch.equal(new_words(inputs, several), one.repeat_interleave(2, dim=0))


def test_plain_words_are_continued(model):
    assert model.can_generate()
    out = model.generate(input_ids=torch.tensor([[20, 30, 40]]), max_new_tokens=4)
    assert out.shape[1] > 3
    embeds = model.get_input_embeddings()(torch.tensor([[20, 30, 40]]))
    again = model.generate(inputs_embeds=embeds, max_new_tokens=4)
    assert torch.equal(out[:, 3:], again)


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_or_a_tied_one_is_loaded_and_saved(tmp_path, tied):
    workdir = write_run(tmp_path / "run", unified__transformer__tied_head=tied)
    folder = export(workdir, tmp_path / "out", Options())
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert shared is tied
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    ids = torch.tensor([[20, 30, 40]])
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_several_kinds_of_slots_for_a_picture_are_placed_as_by_our_own_methods(tmp_path):
    """Features and latents of one picture, at one place, the latents on a smaller grid."""
    workdir = write_run(
        tmp_path / "run",
        data__image_size=64,
        unified__understanding="sequence_concat",
        codec__compressor="pool",
        codec__pool=2,
    )
    folder = export(workdir, tmp_path / "out", Options())
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = chat(model.processor, question(picture(1, 64, 64)))
    code = sys.modules[type(model.processor).__module__]
    prefix = model.processor.prefix([code.Image(picture(1, 64, 64)), code.Words("how many dots?")])
    expected = model.language_model.logits(model.read([prefix]).hidden)
    assert len(prefix) == inputs["input_ids"].shape[1]
    torch.testing.assert_close(model(**inputs).logits[:, -1], expected, atol=2e-5, rtol=1e-5)


# ---- pipelines --------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["image-text-to-text", "image-to-text"])
def test_a_pipeline_answers_about_a_picture(exported, model, images, task, monkeypatch):
    # The warning that transformers 5.23 gives for the old name of the task cannot be formatted.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger = logging.getLogger("transformers.pipelines")
    monkeypatch.setattr(logger, "level", logging.ERROR)
    answers = pipeline(task, model=str(exported), trust_remote_code=True)
    expected = model.processor.tokenizer.decode(
        model.continue_tokens(
            model.read([model.processor.prefix(segments(model, images[0]))]),
            4,
            lambda logits: logits.argmax(-1),
        )[0],
        skip_special_tokens=True,
    )
    (found,) = answers(text=question(images[0]), max_new_tokens=4, return_full_text=False)
    assert found["generated_text"] == expected
    (found,) = answers(images=images[0], text="how many dots?", max_new_tokens=4)
    assert found["generated_text"] == "how many dots?" + expected


def segments(model, image):
    code = sys.modules[type(model.processor).__module__]
    return [code.Image(image), code.Words("how many dots?")]


def test_a_pipeline_continues_words_and_chats(exported):
    write = pipeline("text-generation", model=str(exported), trust_remote_code=True)
    (found,) = write("a red", max_new_tokens=4)
    assert found["generated_text"].startswith("a red")
    assert len(write(["a", "a red dot"], batch_size=2, max_new_tokens=3)) == 2
    (found,) = write([{"role": "user", "content": "hello"}], max_new_tokens=4)
    assert found["generated_text"][-1]["role"] == "assistant"


def test_the_tokenizer_loads_without_running_code(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=False)
    assert tokenizer.decode(tokenizer.encode("a red dot")) == "a red dot"
    assert type(tokenizer).__module__.startswith("transformers.")
    assert (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
        )
        == "<|im_start|>hello<|im_end|>"
    )


# ---- our own methods --------------------------------------------------------------------------


def test_a_string_is_one_prompt(model):
    (one,), (other,) = model.draw("a red dot"), model.draw(["a red dot"])
    np.testing.assert_array_equal(one, other)


def test_one_text_is_asked_of_every_picture_and_lengths_are_checked(model, images):
    assert model.answer(images, "how?") == model.answer(images, ["how?"] * 3)
    assert model.answer(images[0], "how?") == model.answer(images[:1], ["how?"])
    assert len(model.edit(images[:2], "make it blue", steps=1)) == 2
    for call in (model.answer, model.edit):
        with pytest.raises(ValueError, match="3 images and 2"):
            call(images, ["how?", "what?"])
