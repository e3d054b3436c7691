"""The flags of `unicom sample`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

from unicom_jax.config.flags import number
from unicom_jax.runs.step_flag import add_step_flag

SAMPLE = "Draw, describe, answer, edit or converse with a trained model."
SAMPLE_EXAMPLES = """\
examples:
  draw      unicom sample --checkpoint=RUN --prompt="a red circle" --out=circle.png
            unicom sample --checkpoint=RUN --prompt="a cross" --prompt="a ring" --sheet
            unicom sample --checkpoint=RUN --prompt="a ring" --count=4 --sheet --seed=7
  describe  unicom sample --checkpoint=RUN --image=circle.png
  ask       unicom sample --checkpoint=RUN --image=circle.png --ask="what colour is the circle?"
            unicom sample --checkpoint=RUN --image=a.png --image=b.png --together \\
              --ask="Image 2: what colour is the circle?"
  edit      unicom sample --checkpoint=RUN --image=circle.png --edit="make the circle blue"
            unicom sample --checkpoint=RUN --image=circle.png --edit="add a red ring" \\
              --guidance=4 --image-guidance=1.5 --renorm=picture --edit-start=0.1
  converse  unicom sample --checkpoint=RUN --chat"""


def add_sample_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="the workdir of a training run"
    )
    add_step_flag(parser)
    parser.add_argument(
        "--mesh",
        metavar="SIZES",
        help="how weights and batches are split over several devices, for example tensor=4; "
        "default: fsdp=-1, weights sharded over all devices",
    )
    what = parser.add_argument_group("task (choose one)")
    what.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="draw this; repeat the flag for several prompts",
    )
    what.add_argument(
        "--image",
        action="append",
        metavar="FILE",
        help="describe this picture; repeat the flag for several",
    )
    what.add_argument("--ask", metavar="TEXT", help="with --image: answer this question about it")
    what.add_argument(
        "--together",
        action="store_true",
        help='with --ask: ask one question about all pictures; "Image 2: ..." is about the second',
    )
    what.add_argument("--edit", metavar="TEXT", help="with --image: edit it by this instruction")
    what.add_argument("--chat", action="store_true", help="converse in words and pictures")
    drawing = parser.add_argument_group("pictures")
    drawing.add_argument(
        "--out",
        metavar="FILE",
        help="PNG to write, numbered if there are several; default sample.png",
    )
    drawing.add_argument(
        "--sheet", action="store_true", help="put several pictures side by side in one file"
    )
    drawing.add_argument(
        "--count",
        type=number(int, 1),
        metavar="N",
        help="pictures for each prompt or edit; default 1",
    )
    drawing.add_argument(
        "--size", metavar="SIZE", help="HEIGHTxWIDTH in pixels, or an aspect ratio like 16:9"
    )
    drawing.add_argument("--think", action="store_true", help="write a plan first, then draw it")
    drawing.add_argument(
        "--steps",
        type=number(int, 1),
        metavar="N",
        help="number of flow steps; more are slower and more exact",
    )
    drawing.add_argument(
        "--guidance",
        type=number(float, 0),
        metavar="X",
        help="1: none; 2 to 5: follow the words more closely, at twice the work",
    )
    drawing.add_argument(
        "--image-guidance",
        type=number(float, 0),
        metavar="X",
        help="for edits: 1 (default): none; 1.2 to 2: stay closer to the source, at half as much "
        "work again; only for models trained with image_dropout",
    )
    drawing.add_argument(
        "--renorm",
        choices=("none", "picture", "token", "words"),
        help="against oversaturated colours at high guidance: scale the guided velocity down to "
        "the norm of the unguided one, over the picture, by token, or by token before image "
        "guidance",
    )
    drawing.add_argument(
        "--guidance-interval",
        type=_pair,
        metavar="LOW,HIGH",
        help="use guidance only between these flow times (0: noise, 1: picture); other steps cost "
        "half as much",
    )
    drawing.add_argument(
        "--sampler", choices=("euler", "heun"), help="heun: more exact, at twice the work per step"
    )
    drawing.add_argument(
        "--shift",
        type=number(float, 0.01),
        metavar="X",
        help="above 1: more of the steps near noise, for large pictures; default: as in training",
    )
    drawing.add_argument(
        "--edit-start",
        type=number(float, 0, 0.999),
        metavar="TIME",
        help="for edits: flow time at which they begin, from a mixture of noise and source; 0: "
        "from noise alone; Cheers uses 0.1",
    )
    drawing.add_argument(
        "--grid",
        choices=("even", "released"),
        help="released: the flow times of Cheers' published code, for comparisons with it",
    )
    drawing.add_argument(
        "--codec-steps",
        type=number(int, 1),
        metavar="N",
        help="number of flow steps from the drawn latents to pixels",
    )
    words = parser.add_argument_group("words")
    words.add_argument(
        "--temperature",
        type=number(float, 0),
        metavar="X",
        help="0 (default): always take the most likely token",
    )
    words.add_argument(
        "--top-p",
        type=number(float, 0, 1),
        metavar="P",
        help="sample from the most likely tokens with this total probability",
    )
    words.add_argument(
        "--top-k",
        type=number(int, 0),
        metavar="N",
        help="sample from this many of the most likely tokens; 0: all",
    )
    words.add_argument(
        "--max-tokens", type=number(int, 1), metavar="N", help="longest answer, in tokens"
    )
    words.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end an answer before this text; repeat the flag for several texts",
    )
    parser.add_argument(
        "--seed",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="seed of all random numbers; default 0",
    )


def _pair(text: str) -> tuple[float, float]:
    """An argparse type: two numbers separated by a comma."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give two numbers, like 0.1,0.8") from None
    return low, high
