"""What each task shows and asks for."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from data_pipelines.examples import Edit, Example, Question
from data_pipelines.segments import (
    DRAWN,
    SOURCE,
    UNDERSTOOD,
    FinishedDocument,
    Image,
    Text,
    is_response,
)
from data_pipelines.sequences.tasks import (
    TASKS,
    BrokenExample,
    choose_dropped,
    drop,
    unconditional_segments,
)
from tests.data.samples import example, picture

PAGE = FinishedDocument(
    "page/0",
    (Text("two cats", True), Image(picture(0)), Text("draw a third"), Image(picture(1), DRAWN)),
)


def run(task, *examples, seed=0):
    one = example() if TASKS[task].reads is Example else PAGE
    return TASKS[task].function(examples or [one] * TASKS[task].arity, rng(seed))


def rng(seed=0):
    return np.random.default_rng(seed)


def shape_of(segments):
    """'p' prompt text, 't' response text, 'u' understood, 's' source, 'd' drawn."""
    roles = {UNDERSTOOD: "u", SOURCE: "s", DRAWN: "d"}
    return "".join(
        roles[s.role] if isinstance(s, Image) else "t" if s.supervised else "p" for s in segments
    )


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("text", "t"),
        ("text_to_image", "pd"),
        ("long_text_to_image", "pd"),
        ("redraw", "upd"),
        ("image_to_text", "upt"),
        ("visual_qa", "upt"),
        ("edit", "spd"),
        ("several_images", "uupt"),
        ("think_then_draw", "ptd"),
    ],
)
def test_tasks_have_their_shape(task, shape):
    assert shape_of(run(task)) == shape


def test_a_picture_is_redrawn_from_itself_and_needs_no_words():
    plain = dataclasses.replace(example(), captions=())
    read, _, drawn = run("redraw", plain)
    assert read.pixels is drawn.pixels is plain.image


def test_long_text_is_the_most_detailed_caption():
    one = example()
    assert len(one.captions) > 1
    assert {run("long_text_to_image", one, seed=s)[0].text for s in range(9)} == {one.captions[-1]}


def test_questions_are_those_of_a_conversation_each_standing_apart():
    together, apart = run("conversation", seed=5), run("questions", seed=5)
    assert [s.text for s in apart[1:]] == [s.text for s in together[1:]]
    assert [s.apart for s in apart[1:]] == [not is_response(s) for s in apart[1:]]


def test_interleaved_asks_about_or_edits_what_it_drew():
    shapes = {shape_of(run("interleaved", seed=seed)) for seed in range(20)}
    assert shapes == {"pdpt", "pdpd", "pdptpd"}


def test_every_task_ends_with_a_response():
    assert all(is_response(run(task)[-1]) for task in TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_pure_functions_of_examples_and_generator(task):
    first, second = run(task, seed=3), run(task, seed=3)
    assert [getattr(s, "text", None) for s in first] == [getattr(s, "text", None) for s in second]


def test_a_document_is_read_as_its_source_wrote_it():
    assert shape_of(run("document")) == "tupd"


def test_a_document_without_a_response_at_its_end_is_broken():
    page = FinishedDocument("page/7", (Text("two cats", True), Image(picture(0))))
    with pytest.raises(BrokenExample, match="'page/7' ends without a response"):
        run("document", page)


def test_the_condition_of_a_document_is_dropped_as_that_of_any_other_task():
    page = run("document")
    segments = drop(page, choose_dropped(page, 1.0, rng()))
    assert shape_of(segments) == "upd" and segments[1].text == ""
    assert shape_of(drop(page, choose_dropped(page, 0.0, rng(), 1.0))) == "tpd"


def test_several_images_asks_about_the_picture_it_numbers():
    one = example(1, questions=(Question("which?", "first", "x"),))
    two = example(2, questions=(Question("which?", "second", "x"),))
    for seed in range(8):
        *_, prompt, answer = run("several_images", one, two, seed=seed)
        assert (prompt.text, answer.text) in {
            ("Image 1: which?", "first"),
            ("Image 2: which?", "second"),
        }


def test_captioning_prompts_tell_the_short_caption_from_the_long():
    prompts = {}
    for seed in range(20):
        _, prompt, caption = run("image_to_text", seed=seed)
        prompts.setdefault(prompt.text, set()).add(caption.text)
    assert prompts == {
        "Describe briefly.": {example().captions[0]},
        "Describe in detail.": {example().captions[1]},
    }


def dropped_of(segments, *chances):
    return drop(segments, choose_dropped(segments, *chances))


def test_unconditional_segments_lose_words_and_keep_pictures_and_turns():
    segments = [Image(example().image, SOURCE), Text("paint it"), Text("a thought", True)]
    silent = unconditional_segments(segments)
    assert shape_of(silent) == "sp" and silent[1].text == ""


def test_dropout_makes_everything_before_the_last_drawn_image_unconditional():
    segments = [*run("think_then_draw"), Text("how many?"), Text("one", True)]
    dropped = dropped_of(segments, 1.0, rng())
    assert shape_of(dropped) == "pdpt"
    assert [s.text for s in dropped if isinstance(s, Text)] == ["", "how many?", "one"]


def test_dropout_spares_documents_that_draw_nothing():
    segments = run("visual_qa")
    assert dropped_of(segments, 1.0, rng()) == segments


def test_dropout_happens_as_often_as_asked():
    generator = rng()
    segments = run("text_to_image")
    dropped = sum(dropped_of(segments, 0.2, generator)[0].text == "" for _ in range(2000))
    assert 330 < dropped < 470


def test_pictures_are_dropped_with_a_probability_of_their_own():
    segments = run("edit")
    assert shape_of(segments) == "spd"
    dropped = dropped_of(segments, 0.0, rng(), 1.0)
    assert dropped == [segments[1], segments[2]]  # the words stay
    generator = rng()
    shapes = Counter(
        shape_of(kept) + "".join(s.text[:1] for s in kept if isinstance(s, Text))
        for kept in (dropped_of(segments, 0.2, generator, 0.3) for _ in range(2000))
    )
    words = segments[1].text[:1]
    assert shapes.keys() == {f"spd{words}", "spd", f"pd{words}"}  # never both
    assert 330 < shapes["spd"] < 470 and 530 < shapes[f"pd{words}"] < 670


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("text_to_image", {"captions": (" ",)}, "'dots/0' has an empty caption"),
        ("image_to_text", {"captions": ()}, "'dots/0' has no captions"),
        ("visual_qa", {"questions": ()}, "'dots/0' has no questions"),
        ("visual_qa", {"questions": (Question("why?", "", "x"),)}, "'dots/0' has an empty answer"),
        ("edit", {"edits": ()}, "'dots/0' has no edits"),
        ("think_then_draw", {"thought": ""}, "'dots/0' has an empty thought"),
        ("interleaved", {"questions": (), "edits": ()}, "'dots/0' has no questions or edits"),
    ],
)
def test_an_example_that_lacks_something_is_named_with_the_fix(task, changes, message):
    with pytest.raises(BrokenExample, match=f"{message}; ") as error:
        run(task, example(**changes))
    assert "\n" not in str(error.value)


def test_an_empty_instruction_is_named():
    broken = example(edits=(Edit("", example().image, "recolour"),))
    with pytest.raises(BrokenExample, match="'dots/0' has an empty instruction"):
        run("edit", broken)


def test_an_unknown_image_role_is_refused():
    with pytest.raises(ValueError, match="image role 'seen' is unknown"):
        Image(example().image, "seen")
