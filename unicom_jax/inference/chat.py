"""A conversation in the terminal: words and pictures, turn by turn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from data_pipelines.decoding import load_image
from data_pipelines.segments import SOURCE, UNDERSTOOD, Image, Segment, Text
from unicom_jax.inference.pictures import numbered, save

HELP = """\
Write what you want: a question, or what to draw. Commands, each on its own line:
  /image FILE   show the model a picture; your next words are about it
  /edit FILE    give it a picture to change; your next words say how
  /new          forget everything so far
  /help         these lines
  /quit         leave (so does Ctrl-D)"""

# (the conversation so far, the number of earlier turns, a function that prints a piece of text as
# it is written) -> the model's answer.
Answer = Callable[[list[Segment], int, Callable[[str], None]], list[Segment]]


@dataclasses.dataclass
class Talk:
    """The state of a conversation: what was said, and the number of turns and pictures so far."""

    said: list[Segment] = dataclasses.field(default_factory=list)
    turns: int = 0
    pictures: int = 0


def chat(answer: Answer, console: Console, out: Path) -> None:
    """Reads lines from standard input until /quit or its end, and answers each.

    Words appear as they are written. Pictures that the model draws are saved as `out`-1, `out`-2,
    ... An error, such as an unreadable picture, is printed in one line; the conversation continues.
    """
    console.print(HELP, markup=False, soft_wrap=True)
    talk = Talk()
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except EOFError:
            console.print()
            return
        if line == "/quit":
            return
        try:
            if line.startswith("/"):
                _command(line, talk, console)
            elif line:
                _turn(line, talk, answer, console, out)
        except (ValueError, OSError) as error:
            console.print(f"! {error}", markup=False, soft_wrap=True)


def _command(line: str, talk: Talk, console: Console) -> None:
    name, _, argument = line.partition(" ")
    roles = {"/image": UNDERSTOOD, "/edit": SOURCE}
    if name in roles:
        if not argument:
            raise ValueError(f"{name} needs a file, like {name} picture.png")
        image = load_image(Path(argument.strip()).expanduser())
        talk.said.append(Image(image, roles[name]))
        size = f"{image.shape[0]} x {image.shape[1]}"
        console.print(f"{argument.strip()}: {size}", markup=False, soft_wrap=True)
    elif name == "/new":
        talk.said.clear()
    elif name == "/help":
        console.print(HELP, markup=False, soft_wrap=True)
    else:
        raise ValueError(f"{name} is not a command; /help lists them")


def _turn(line: str, talk: Talk, answer: Answer, console: Console, out: Path) -> None:
    asked = [*talk.said, Text(line)]
    printed = False

    def say(piece: str) -> None:
        nonlocal printed
        printed = True
        console.print(piece, markup=False, soft_wrap=True, end="")

    try:
        answered = answer(asked, talk.turns, say)
    finally:
        if printed:
            console.print()
    talk.said, talk.turns = [*asked, *answered], talk.turns + 1
    for segment in answered:
        if isinstance(segment, Image):
            talk.pictures += 1
            path = save(segment.pixels, numbered(out, talk.pictures))
            console.print(f"picture: {path}", markup=False, soft_wrap=True)
    if not answered:
        console.print("(no answer)")
