"""Tasks: from examples to what the model reads and what it must write, as a list of segments.

A task is a pure function of its examples and a generator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.examples import Example, Question
from data_pipelines.faults import SourceError
from data_pipelines.segments import (
    DRAWN,
    SOURCE,
    FinishedDocument,
    Image,
    Segment,
    Text,
    is_response,
)
from data_pipelines.sources.undecoded import EVERY_PICTURE, ONE_PICTURE, TEXTS_ALONE

WORDS, PICTURES, NOTHING = "words", "pictures", "nothing"  # what is dropped for guidance

BRIEFLY, IN_DETAIL = "Describe briefly.", "Describe in detail."  # the prompts of image_to_text
AGAIN = "Draw this picture again."  # the prompt of redraw


class BrokenExample(ValueError):
    """An example that lacks what its task needs; the message names it and how to fix it."""


Content = Example | FinishedDocument  # the content of a record
TaskFunction = Callable[[Sequence[Any], np.random.Generator], list[Segment]]


def unconditional_segments(segments: Sequence[Segment]) -> list[Segment]:
    """The same context without its words, for classifier-free guidance.

    Training sees the same after dropout, unless words are masked (`dropout.build_unconditional`).
    Prompt texts become empty (their turn marks stay), response texts such as a thought are removed,
    and images stay. So the unconditional form of a text-to-image prompt is an empty turn, and that
    of an edit is a turn with the picture.
    """
    silent = [
        Text("") if isinstance(segment, Text) and not segment.supervised else segment
        for segment in segments
    ]
    return [segment for segment in silent if isinstance(segment, Image) or not segment.supervised]


def without_pictures(segments: Sequence[Segment]) -> list[Segment]:
    """The same context without its pictures, for guidance by pictures."""
    return [segment for segment in segments if isinstance(segment, Text)]


def choose_dropped(
    segments: Sequence[Segment],
    probability: float,
    rng: np.random.Generator,
    image_probability: float = 0.0,
) -> str:
    """What a training document loses before its last drawn image: WORDS, PICTURES or NOTHING.

    Words are dropped with the given probability, pictures with `image_probability`, never both.
    Documents without a drawn image lose nothing and use no number from `rng`.
    """
    if not _drawn(segments) or (chance := rng.random()) >= probability + image_probability:
        return NOTHING
    return WORDS if chance < probability else PICTURES


def drop(segments: Sequence[Segment], dropped: str) -> list[Segment]:
    """The segments, with what is `dropped` removed from everything before the last drawn image."""
    if dropped == NOTHING:
        return list(segments)
    last = _drawn(segments)[-1]
    less = unconditional_segments if dropped == WORDS else without_pictures
    return [*less(segments[:last]), *segments[last:]]


def _drawn(segments: Sequence[Segment]) -> list[int]:
    return [
        index
        for index, segment in enumerate(segments)
        if isinstance(segment, Image) and segment.role == DRAWN
    ]


def text(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """A document of words alone: a caption, at times followed by a question and its answer."""
    (example,) = examples
    words = draw_caption(example, rng)
    if example.questions and rng.random() < 0.5:
        question = _question(example, rng)
        words = f"{words} {question.question} {question.answer}"
    return [Text(words, supervised=True)]


def is_long_text(segments: Sequence[Segment]) -> bool:
    """Whether a document is a single text, which may be replaced by a part of it."""
    return len(segments) == 1 and isinstance(segments[0], Text) and len(segments[0].text) > 1


def half_of(segment: Text, rng: np.random.Generator) -> Text:
    """Half of a text, from a random place; used for a text that is longer than a row.
    It begins and ends between words if the text has several.
    """
    words = segment.text.split(" ")
    parts, between = (words, " ") if len(words) > 1 else (segment.text, "")
    count = len(parts) // 2
    start = int(rng.integers(len(parts) - count + 1))
    return dataclasses.replace(segment, text=between.join(parts[start : start + count]))


def text_to_image(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    (example,) = examples
    return [Text(draw_caption(example, rng)), Image(_picture(example), DRAWN)]


def long_text_to_image(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Text to image from the most detailed caption."""
    (example,) = examples
    return [Text(draw_caption(example, rng, last=True)), Image(_picture(example), DRAWN)]


def redraw(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """A picture is read as pictures to be understood are, then drawn (RecA: arXiv 2509.07295)."""
    (example,) = examples
    picture = _picture(example)
    return [Image(picture), Text(AGAIN), Image(picture, DRAWN)]


def image_to_text(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Captioning. The prompt says whether a brief or a detailed caption is wanted."""
    (example,) = examples
    _require(example, example.captions, "captions")
    index = int(rng.integers(len(example.captions)))
    prompt = BRIEFLY if index == 0 else IN_DETAIL
    caption = _nonempty(example, example.captions[index], "caption")
    return [Image(_picture(example)), Text(prompt), Text(caption, supervised=True)]


def visual_qa(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    (example,) = examples
    question = _question(example, rng)
    return [
        Image(_picture(example)),
        Text(question.question),
        Text(question.answer, supervised=True),
    ]


def conversation(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """One picture and all its questions in random order, so that the picture is read once."""
    (example,) = examples
    _require(example, example.questions, "questions")
    segments: list[Segment] = [Image(_picture(example))]
    for index in rng.permutation(len(example.questions)):
        question = _checked(example, example.questions[index])
        segments += [Text(question.question), Text(question.answer, supervised=True)]
    return segments


def questions(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """One picture and all its questions, each as if it were the only one: unlike in a conversation,
    no other question or answer comes between it and the picture.
    """
    return [
        dataclasses.replace(segment, apart=True)
        if isinstance(segment, Text) and not segment.supervised
        else segment
        for segment in conversation(examples, rng)
    ]


def edit(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Image editing: from a picture and an instruction to a picture."""
    (example,) = examples
    return [Image(_picture(example), SOURCE), *_edit_turn(example, rng)]


def several_images(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Two pictures and a question about one of them, or a request for its caption if it has no
    questions.
    """
    index = int(rng.integers(len(examples)))
    chosen = examples[index]
    if chosen.questions:
        question = _question(chosen, rng)
        asked, answer = question.question, question.answer
    else:
        _require(chosen, chosen.captions, "captions or questions")
        asked, answer = BRIEFLY, _nonempty(chosen, chosen.captions[0], "caption")
    prompt = Text(about_image(index + 1, asked))
    return [
        *[Image(_picture(example)) for example in examples],
        prompt,
        Text(answer, supervised=True),
    ]


def think_then_draw(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Text to image with a plan in words before the picture."""
    (example,) = examples
    thought = thinking(_nonempty(example, example.thought, "thought"))
    return [
        Text(draw_caption(example, rng)),
        Text(thought, supervised=True),
        Image(_picture(example), DRAWN),
    ]


def interleaved(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Several turns: draw a picture, then answer a question about it, edit it, or both."""
    (example,) = examples
    _require(example, (*example.questions, *example.edits), "questions or edits")
    both = bool(example.questions) and bool(example.edits)
    choice = (
        int(rng.integers(3)) if both else int(not example.questions)
    )  # 0 ask, 1 edit, 2 ask and edit
    segments = text_to_image(examples, rng)
    if choice in (0, 2):
        question = _question(example, rng)
        segments += [Text(question.question), Text(question.answer, supervised=True)]
    if choice in (1, 2):
        segments += _edit_turn(example, rng)
    return segments


def document(documents: Sequence[FinishedDocument], rng: np.random.Generator) -> list[Segment]:
    """A document as its source wrote it."""
    (finished,) = documents
    if not finished.segments or not is_response(finished.segments[-1]):
        raise BrokenExample(
            f"document {finished.key!r} ends without a response; end it with one, or remove it"
        )
    return list(finished.segments)


def about_image(number: int, question: str) -> str:
    """The text of a question about one of several pictures, counted from 1."""
    return f"Image {number}: {question}"


def thinking(thought: str) -> str:
    """The text of a thought in a response."""
    return f"<think>{thought}</think>"


def draw_caption(example: Example, rng: np.random.Generator, last: bool = False) -> str:
    """One of the example's captions, or its `last`, most detailed one.

    Raises BrokenExample if there is none or it is empty.
    """
    _require(example, example.captions, "captions")
    index = -1 if last else int(rng.integers(len(example.captions)))
    return _nonempty(example, example.captions[index], "caption")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, the number of records it takes at a time, the fields of which a record needs at least
    one non-empty, which of picture and captions it requires, and the pictures it reads.
    """

    function: TaskFunction
    arity: int = 1
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ("image", "captions")
    reads: type = Example

    @property
    def look(self) -> str:
        """Which pictures of a record it reads (`undecoded.decoded`)."""
        if self.reads is FinishedDocument or "edits" in self.needs:
            return EVERY_PICTURE
        return ONE_PICTURE if "image" in self.takes else TEXTS_ALONE


TASKS: dict[str, Task] = {
    "text": Task(text, takes=("captions",)),
    "text_to_image": Task(text_to_image),
    "long_text_to_image": Task(long_text_to_image),
    "redraw": Task(redraw, takes=("image",)),
    "image_to_text": Task(image_to_text),
    "visual_qa": Task(visual_qa, needs=("questions",), takes=("image",)),
    "conversation": Task(conversation, needs=("questions",), takes=("image",)),
    "questions": Task(questions, needs=("questions",), takes=("image",)),
    "edit": Task(edit, needs=("edits",), takes=("image",)),
    "several_images": Task(several_images, arity=2),
    "think_then_draw": Task(think_then_draw, needs=("thought",)),
    "interleaved": Task(interleaved, needs=("questions", "edits")),
    "document": Task(document, needs=("segments",), takes=(), reads=FinishedDocument),
}
DOCUMENT_TASKS = tuple(name for name, task in TASKS.items() if task.reads is FinishedDocument)


def check_content(
    task: str, contents: Sequence[Content], source: Sequence[Content], origin: str = ""
) -> None:
    """Checks that records hold what a task reads.

    Args:
      source: where they come from.
      origin: the name of the source, if it has one.

    Raises:
      SourceError: a task for examples got a finished document, or the other way round.
    """
    for content in contents:
        if isinstance(content, TASKS[task].reads):
            continue
        owner = origin or repr(source)
        if isinstance(content, FinishedDocument):
            raise SourceError(
                f"{owner} has finished documents such as {content.key!r}, which the task {task!r} "
                f"cannot read: give it the task {' or '.join(map(repr, DOCUMENT_TASKS))}"
            )
        raise SourceError(
            f"{owner} has pictures with texts such as {content.key!r}, and the task {task!r} reads "
            "finished documents: give it another task"
        )


def texts_of(content: Content) -> list[str]:
    """The texts of a record that tasks write."""
    if isinstance(content, FinishedDocument):
        return [segment.text for segment in content.segments if isinstance(segment, Text)]
    return [
        *content.captions,
        content.thought,
        *(words for q in content.questions for words in (q.question, q.answer)),
        *(edit.instruction for edit in content.edits),
    ]


def _require(example: Example, values: Sequence[object], what: str) -> None:
    if not values:
        raise BrokenExample(
            f"example {example.key!r} has no {what}; add some, or leave its task out of the mixture"
        )


def _picture(example: Example) -> np.ndarray:
    if example.image is None:
        _require(example, (), "picture")
    return example.image


def _nonempty(example: Example, words: str, what: str) -> str:
    if not words.strip():
        raise BrokenExample(
            f"example {example.key!r} has an empty {what}; fill it in, or remove the example"
        )
    return words


def _question(example: Example, rng: np.random.Generator) -> Question:
    _require(example, example.questions, "questions")
    return _checked(example, example.questions[int(rng.integers(len(example.questions)))])


def _checked(example: Example, question: Question) -> Question:
    _nonempty(example, question.question, "question")
    _nonempty(example, question.answer, "answer")
    return question


def _edit_turn(example: Example, rng: np.random.Generator) -> list[Segment]:
    _require(example, example.edits, "edits")
    chosen = example.edits[int(rng.integers(len(example.edits)))]
    return [
        Text(_nonempty(example, chosen.instruction, "instruction")),
        Image(chosen.target, DRAWN),
    ]
