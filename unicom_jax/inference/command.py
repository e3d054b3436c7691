"""`unicom sample`: draw, describe, answer, edit or chat from a terminal."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from data_pipelines.decoding import load_image
from data_pipelines.segments import SOURCE, UNDERSTOOD, Image, Segment, Text
from data_pipelines.sequences.sequence import VISION_START, build_prefix
from data_pipelines.sequences.tasks import BRIEFLY, about_image
from unicom_jax.core.paths import as_path
from unicom_jax.core.picture import Picture
from unicom_jax.inference.arrays import derived_seed
from unicom_jax.inference.chat import chat
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.pictures import check_name, save_all
from unicom_jax.runs.stages import row_stages

# The options that each mode reads; giving any other one is an error, none is ignored.
CHOICE = ("max_tokens", "temperature", "top_p", "top_k")
WORDS = (*CHOICE, "stop")
FLOW = (
    "steps", "guidance", "guidance_interval", "sampler", "renorm", "shift", "grid", "codec_steps",
)  # fmt: skip
SOURCED = (*FLOW, "image_guidance", "edit_start")
FILES = ("out", "sheet", "count")
READS = {
    "--prompt": ("prompt", *FILES, "size", *FLOW),
    "--prompt --think": ("prompt", "think", *FILES, "size", *FLOW, *CHOICE),
    "--image": ("image", *WORDS),
    "--ask": ("image", "ask", *WORDS),
    "--ask --together": ("image", "ask", "together", *WORDS),
    "--edit": ("image", "edit", *FILES, *SOURCED),
    "--chat": ("chat", "out", "size", *SOURCED, *WORDS),
}
OPTIONS = tuple(dict.fromkeys(option for options in READS.values() for option in options))
DEFAULT_OUT = "sample.png"
ABOUT_ONE = re.compile(r"Image (\d+):")  # see `about_image`
ABSURD = 8  # text as long as this many training rows is refused, to read or to write


class Request(NamedTuple):
    """The checked request.

    Attributes:
      given: the options that were given, by name.
      images: the pictures of --image.
      options: arguments of the generator's methods.
    """

    given: Mapping[str, Any]
    images: list[Picture]
    out: Path
    options: dict[str, Any]

    def each(self, asked: Sequence[str]) -> list[str]:
        """The request for every picture that is drawn: each of `asked`, `count` times."""
        return [one for one in asked for _ in range(self.options.get("count", 1))]


def run_sample(args: argparse.Namespace, console: Console) -> None:
    """Runs `unicom sample` with its parsed flags; pictures go to --out, words to `console`.

    What can be checked without the model is checked before the model is loaded.

    Raises:
      ValueError: conflicting flags, empty or absurdly long words, more of them asked for than the
        model can write, an unreadable picture, or a size that the model does not draw.
      CheckpointError, TokenizerError: the checkpoint cannot be used.
    """
    mode = mode_of(args)
    given = {name: getattr(args, name) for name in OPTIONS}
    given = {name: value for name, value in given.items() if not _absent(value)}
    _check_flags(mode, given)
    images = [load_image(path) for path in given.get("image", ())]
    out = check_name(as_path(given.get("out", DEFAULT_OUT)))
    with console.status("loading the checkpoint"):
        generator = Generator.load(args.checkpoint, args.step, args.mesh)
    names = dict.fromkeys((*SOURCED, *WORDS, "count"))
    options = {name: given[name] for name in names if name in given}
    options["seed"] = args.seed
    if "size" in given:
        options["size"] = size_of(given["size"], generator)
    if "max_tokens" in given:
        check_longest(given["max_tokens"], generator)
    RUN[mode](generator, Request(given, images, out, options), console)


def mode_of(args: argparse.Namespace) -> str:
    """The requested mode: a key of `READS`.

    Raises:
      ValueError: no mode or two modes are requested, or a picture is missing.
    """
    choices = {name: getattr(args, name) for name in ("prompt", "ask", "edit", "chat")}
    asked = [f"--{name}" for name, value in choices.items() if not _absent(value)]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} exclude each other; give one of them")
    if not asked and not args.image:
        raise ValueError(
            "nothing to do; give --prompt to draw, --image to describe a picture (with --ask or "
            "--edit to ask about it or change it), or --chat to converse"
        )
    mode = asked[0] if asked else "--image"
    if mode in ("--ask", "--edit") and not args.image:
        raise ValueError(f"{mode} needs a picture; add --image=FILE")
    more = {"--prompt": ("--think", args.think), "--ask": ("--together", args.together)}
    flag, given = more.get(mode, ("", False))
    return f"{mode} {flag}" if given else mode


def _absent(value: Any) -> bool:
    return value is None or value is False  # 0 is a value


def _check_flags(mode: str, given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in READS[mode]:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} does nothing with {mode}; leave it out")
    for name in ("top_p", "top_k"):
        if given.get(name) and not given.get("temperature"):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} does nothing at temperature 0; add --temperature=0.8")
    texts = [("prompt", text) for text in given.get("prompt", ())]
    texts += [(name, given[name]) for name in ("ask", "edit") if name in given]
    for name, text in texts:
        if not text.strip():
            raise ValueError(f"--{name} is empty; give it some words")
    if "together" in given:
        _check_together(given["ask"], len(given["image"]))


def _check_together(question: str, pictures: int) -> None:
    if pictures < 2:
        raise ValueError("--together is for several pictures; add another --image=FILE")
    named = ABOUT_ONE.match(question)
    if named and not 1 <= int(named[1]) <= pictures:
        raise ValueError(
            f"--ask is about image {named[1]}, but {pictures} pictures are given; count from 1"
        )


# ---- sizes and lengths ------------------------------------------------------------------------


def size_of(text: str, generator: Generator) -> tuple[int, int]:
    """(height, width) in pixels of HEIGHTxWIDTH, or of the ratio WIDTH:HEIGHT under the model's
    image policy.

    Raises:
      ValueError: the text is neither of the two, or a ratio that the model does not draw.
    """
    ratio = ":" in text
    try:
        first, second = (float(part) for part in text.lower().split(":" if ratio else "x"))
    except ValueError:
        first = second = math.nan
    if not (0 < first < math.inf and 0 < second < math.inf):
        raise ValueError(
            f"--size={text}: give HEIGHTxWIDTH in pixels, like 64x96, or an aspect ratio like 16:9"
        )
    if not ratio:
        return int(first), int(second)
    policy = generator.sequence.images
    if policy.square and first != second:
        raise ValueError(
            f"--size={text}: this model draws squares of {policy.size} pixels only; leave --size "
            "out, or train with --config.data.policy=bucket or naflex"
        )
    if max(first / second, second / first) > policy.max_ratio:
        raise ValueError(
            f"--size={text}: the sides differ more than 1 to {policy.max_ratio:g}; give a ratio "
            "closer to 1:1, or HEIGHTxWIDTH"
        )
    scale = 256 / min(first, second)  # fine enough that rounding keeps the ratio
    picture = np.zeros((round(second * scale), round(first * scale), 3), np.uint8)
    return generator.prepared(picture).shape[:2]


def check_length(segments: Sequence[Segment], generator: Generator, console: Console) -> None:
    """Warns if the model has to read more at once than it ever did in training.

    Raises:
      ValueError: it is absurdly more.
    """
    trained = _trained_rows(generator)
    length = len(build_prefix(segments, generator.tokenizer, generator.sequence, VISION_START))
    if length > ABSURD * trained:
        raise ValueError(
            f"{length} tokens are too long: the model learned from rows of {trained}; shorten the "
            f"text to less than {ABSURD * trained} tokens"
        )
    if length > trained:
        console.print(
            f"! {length} tokens, but training rows had {trained}: quality may suffer",
            soft_wrap=True,
        )


def check_longest(max_tokens: int, generator: Generator) -> None:
    """Raises a ValueError if the model should write absurdly more than it ever saw in training."""
    trained = _trained_rows(generator)
    if max_tokens > ABSURD * trained:
        raise ValueError(
            f"--max-tokens={max_tokens}: the model learned from rows of {trained} tokens; give at "
            f"most {ABSURD * trained}"
        )


def _trained_rows(generator: Generator) -> int:
    """Slots of the longest rows that the model learned from."""
    stages = row_stages(generator.config)
    return max(generator.config[name]["sequence_length"] for name in stages)


# ---- the modes --------------------------------------------------------------------------------


def _draw(generator: Generator, request: Request, console: Console) -> None:
    for prompt in request.given["prompt"]:
        check_length([Text(prompt)], generator, console)
    prompts = request.each(request.given["prompt"])
    with console.status(f"drawing {len(prompts)}"):
        drawn = generator.draw(
            request.given["prompt"], think="think" in request.given, **request.options
        )
    paths = save_all([one.image for one in drawn], request.out, "sheet" in request.given)
    for prompt, one, path in zip(prompts, drawn, paths, strict=True):
        if one.thought:
            _say(console, f"plan: {one.thought}")
        _say(console, f"{path}: {prompt}")


def _answer(generator: Generator, request: Request, console: Console) -> None:
    question = request.given.get("ask", BRIEFLY)
    for image in request.images:
        check_length([Image(image, UNDERSTOOD), Text(question)], generator, console)
    with console.status("looking"):
        answers = generator.answer(request.images, question, **request.options)
    for path, answer in zip(request.given["image"], answers, strict=True):
        _say(console, answer if len(answers) == 1 else f"{path}: {answer}")


def _answer_together(generator: Generator, request: Request, console: Console) -> None:
    question = request.given["ask"]
    if not ABOUT_ONE.match(question):
        hint = f'the model learned questions about one of them, like "{about_image(1, question)}"'
        _say(console, f"! {hint}: quality may suffer")
    segments = [*(Image(image, UNDERSTOOD) for image in request.images), Text(question)]
    check_length(segments, generator, console)
    with console.status("looking"):
        (answer,) = generator.write([segments], **request.options)
    _say(console, answer)


def _edit(generator: Generator, request: Request, console: Console) -> None:
    instruction = request.given["edit"]
    for image in request.images:
        check_length([Image(image, SOURCE), Text(instruction)], generator, console)
    sources = request.each(request.given["image"])
    with console.status(f"drawing {len(sources)}"):
        edited = generator.edit(request.images, instruction, **request.options)
    paths = save_all(edited, request.out, "sheet" in request.given)
    for source, path in zip(sources, paths, strict=True):
        _say(console, f"{path}: {source}, {instruction}")


def _chat(generator: Generator, request: Request, console: Console) -> None:
    session = generator.session()  # does not read earlier turns again

    def answer(conversation: list[Segment], turn: int, say: Callable[[str], None]) -> list[Segment]:
        check_length(conversation, generator, console)
        # A new seed every turn, so that the same request gives another picture.
        options = {**request.options, "seed": derived_seed(request.options["seed"], turn)}
        # No task trains what follows a picture within a turn, so the turn ends with the picture.
        return session.respond(
            conversation, max_images=1, on_text=lambda _, piece: say(piece), **options
        )

    chat(answer, console, request.out)


def _say(console: Console, text: str) -> None:
    """Prints what a model or a user wrote verbatim, without markup or added line breaks."""
    console.print(text, markup=False, soft_wrap=True)


RUN: dict[str, Callable[[Generator, Request, Console], None]] = {
    "--prompt": _draw,
    "--prompt --think": _draw,
    "--image": _answer,
    "--ask": _answer,
    "--ask --together": _answer_together,
    "--edit": _edit,
    "--chat": _chat,
}
