"""Tasks: from examples to what the model reads and what it must write, as a list of segments.

A task is a pure function of its examples and a generator. Segments say nothing about tokens:
prompts come first, the response follows, and a further prompt opens the next turn. `sequence` turns
them into slots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.examples import Example, Question

UNDERSTOOD, SOURCE, DRAWN = "understood", "source", "drawn"  # what an image is in a document for
WORDS, PICTURES, NOTHING = "words", "pictures", "nothing"  # what is left out for guidance

BRIEFLY, IN_DETAIL = "Describe briefly.", "Describe in detail."  # the prompts of image_to_text


class BrokenExample(ValueError):
    """An example that lacks what its task needs; the message names it and how to fix it."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A stretch of text. Supervised text is response, the other is prompt.

    `apart`: a prompt that starts anew behind the pictures of the first turn. It and its response
    neither see other turns nor stand behind them, as if each were the only one.
    """

    text: str
    supervised: bool = False
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class Image:
    """A picture (H, W, 3) uint8. `role`: "understood" and "source" (of an edit) belong to a prompt,
    "drawn" to a response.
    """

    pixels: np.ndarray
    role: str = UNDERSTOOD

    def __post_init__(self) -> None:
        if self.role not in (UNDERSTOOD, SOURCE, DRAWN):
            raise ValueError(
                f"image role {self.role!r} is unknown; choose {UNDERSTOOD}, {SOURCE} or {DRAWN}"
            )


Segment = Text | Image
TaskFunction = Callable[[Sequence[Example], np.random.Generator], list[Segment]]


def is_response(segment: Segment) -> bool:
    return segment.supervised if isinstance(segment, Text) else segment.role == DRAWN


def unconditional_segments(segments: Sequence[Segment]) -> list[Segment]:
    """The same context without its words, for classifier-free guidance.

    This is what training sees after dropout, where words are not masked
    (`dropout.build_unconditional`). Prompt texts become empty (their turn marks stay),
    response texts such as a thought vanish, images stay. So the unconditional form of a
    text-to-image prompt is an empty turn, and that of an edit is a turn with the picture.
    """
    silent = [
        Text("") if isinstance(segment, Text) and not segment.supervised else segment
        for segment in segments
    ]
    return [segment for segment in silent if isinstance(segment, Image) or not segment.supervised]


def without_pictures(segments: Sequence[Segment]) -> list[Segment]:
    """The same context without its pictures, for guidance by them."""
    return [segment for segment in segments if isinstance(segment, Text)]


def choose_dropped(
    segments: Sequence[Segment],
    probability: float,
    rng: np.random.Generator,
    image_probability: float = 0.0,
) -> str:
    """What a training document loses before its last drawn image: WORDS, PICTURES or NOTHING.

    Words go with the given probability, pictures with `image_probability`, never both. Documents
    that draw nothing lose nothing, and draw no number from `rng`.
    """
    if not _drawn(segments) or (chance := rng.random()) >= probability + image_probability:
        return NOTHING
    return WORDS if chance < probability else PICTURES


def drop(segments: Sequence[Segment], dropped: str) -> list[Segment]:
    """The segments, with everything before the last drawn image without what is `dropped`."""
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
    """A document of words alone: a caption, at times followed by a question that it may answer."""
    (example,) = examples
    words = draw_caption(example, rng)
    if example.questions and rng.random() < 0.5:
        question = _question(example, rng)
        words = f"{words} {question.question} {question.answer}"
    return [Text(words, supervised=True)]


def text_to_image(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    (example,) = examples
    return [Text(draw_caption(example, rng)), Image(example.image, DRAWN)]


def image_to_text(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Captioning. The prompt says whether the shortest caption is wanted or another."""
    (example,) = examples
    _require(example, example.captions, "captions")
    index = int(rng.integers(len(example.captions)))
    prompt = BRIEFLY if index == 0 else IN_DETAIL
    caption = _nonempty(example, example.captions[index], "caption")
    return [Image(example.image), Text(prompt), Text(caption, supervised=True)]


def visual_qa(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    (example,) = examples
    question = _question(example, rng)
    return [Image(example.image), Text(question.question), Text(question.answer, supervised=True)]


def conversation(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """One picture and all its questions in random order: many answers for one look."""
    (example,) = examples
    _require(example, example.questions, "questions")
    segments: list[Segment] = [Image(example.image)]
    for index in rng.permutation(len(example.questions)):
        question = _checked(example, example.questions[index])
        segments += [Text(question.question), Text(question.answer, supervised=True)]
    return segments


def questions(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """One picture and all its questions, each as if it were the only one: unlike in a conversation
    no other question and no answer stands between it and the picture.
    """
    return [
        dataclasses.replace(segment, apart=True)
        if isinstance(segment, Text) and not segment.supervised
        else segment
        for segment in conversation(examples, rng)
    ]


def edit(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Picture and instruction to picture."""
    (example,) = examples
    return [Image(example.image, SOURCE), *_edit_turn(example, rng)]


def several_images(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """Two pictures and a question about one of them; a caption is asked for where it has no
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
    return [*[Image(example.image) for example in examples], prompt, Text(answer, supervised=True)]


def think_then_draw(examples: Sequence[Example], rng: np.random.Generator) -> list[Segment]:
    """A plan in words comes before the picture."""
    (example,) = examples
    thought = thinking(_nonempty(example, example.thought, "thought"))
    return [
        Text(draw_caption(example, rng)),
        Text(thought, supervised=True),
        Image(example.image, DRAWN),
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


def about_image(number: int, question: str) -> str:
    """The form of a question about one of several pictures, counted from 1."""
    return f"Image {number}: {question}"


def thinking(thought: str) -> str:
    """The form of a thought in a response."""
    return f"<think>{thought}</think>"


def draw_caption(example: Example, rng: np.random.Generator, last: bool = False) -> str:
    """One of the example's captions, or its `last`, most detailed one.

    Raises BrokenExample where it has none or it is empty.
    """
    _require(example, example.captions, "captions")
    index = -1 if last else int(rng.integers(len(example.captions)))
    return _nonempty(example, example.captions[index], "caption")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, how many examples it takes at a time, and the fields of which an example needs one
    that is not empty; every example has a picture and captions.
    """

    function: TaskFunction
    arity: int = 1
    needs: tuple[str, ...] = ()


TASKS: dict[str, Task] = {
    "text": Task(text),
    "text_to_image": Task(text_to_image),
    "image_to_text": Task(image_to_text),
    "visual_qa": Task(visual_qa, needs=("questions",)),
    "conversation": Task(conversation, needs=("questions",)),
    "questions": Task(questions, needs=("questions",)),
    "edit": Task(edit, needs=("edits",)),
    "several_images": Task(several_images, arity=2),
    "think_then_draw": Task(think_then_draw, needs=("thought",)),
    "interleaved": Task(interleaved, needs=("questions", "edits")),
}


def _require(example: Example, values: Sequence[object], what: str) -> None:
    if not values:
        raise BrokenExample(
            f"example {example.key!r} has no {what}; add some, or leave its task out of the mixture"
        )


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
