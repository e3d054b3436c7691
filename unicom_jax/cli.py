"""The `unicom` command: train, sample, evaluate, report, data."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unicom_jax.core.memory import keep_freed_memory

# Imports of jax happen inside the commands, so that `--help` answers at once.

EXAMPLES = """
examples:
  unicom train --config=experiments/quickstart.py --workdir=runs/quickstart
  unicom train --config=experiments/quickstart.py --workdir=runs/wide --config.codec.latent_dim=64
  unicom train --workdir=runs/quickstart                # goes on with the stored configuration
  unicom sample --checkpoint=runs/quickstart --prompt="a red circle" --out=circle.png
  unicom sample --checkpoint=runs/quickstart --image=circle.png --ask="what colour is the circle?"
  unicom sample --checkpoint=runs/quickstart --image=circle.png --edit="make the circle blue"
  unicom evaluate --workdir=runs/quickstart && unicom report --workdir=runs/quickstart
  unicom data show --config=experiments/quickstart.py --out=batch.png
  unicom data prepare openmoji --out=data/openmoji
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; expected failures are one line on stderr and exit status 1."""
    parser = _parser()
    known, extra = parser.parse_known_args(arguments)
    known.overrides = [flag for flag in extra if flag.startswith("--config.")]
    unknown = [flag for flag in extra if not flag.startswith("--config.")]
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)} (see unicom {known.command} --help)")
    if known.overrides and not known.takes_overrides:
        parser.error(f"unicom {known.command} reads the configuration of its checkpoint; "
                     f"{known.overrides[0]} cannot change it")  # fmt: skip
    keep_freed_memory()
    try:
        known.run(known)
    except KeyboardInterrupt:
        print("interrupted; the last checkpoint is kept", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("UNICOM_TRACEBACK") or not _is_expected(error):
            raise
        print(f"unicom {known.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _is_expected(error: Exception) -> bool:
    """Errors of ours that name the file or key and the mend; anything else keeps its traceback."""
    from unicom_jax.config import ConfigError
    from unicom_jax.interop.checkpoint import CheckpointError
    from unicom_jax.training.loop import TrainingError

    return isinstance(error, ConfigError | CheckpointError | TrainingError | ValueError | OSError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unicom",
        description="Train and use unified multimodal models of the UniCom family.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, text: str, *, overrides: bool = False, group=commands):
        sub = group.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run, takes_overrides=overrides)
        return sub

    train = command(
        "train", _train, "Train the stages of a configuration, or go on.", overrides=True
    )
    train.add_argument("--config", help="Python file with get_config(); default: the workdir's own")
    train.add_argument("--workdir", required=True, help="where checkpoints and metrics go")
    train.add_argument("--stages", help="comma-separated subset of the configuration's stages")
    train.epilog = "Any key is set by --config.KEY=VALUE, e.g. --config.pretrain.steps=500"

    sample = command("sample", _sample, "Draw, describe, answer, edit or converse.")
    sample.add_argument("--checkpoint", required=True, help="workdir of a training run")
    sample.add_argument("--prompt", action="append", help="text to draw; repeat for several")
    sample.add_argument("--image", action="append", help="picture to read; repeat for several")
    sample.add_argument("--ask", help="question about --image; without it the picture is described")
    sample.add_argument("--edit", help="instruction that changes --image")
    sample.add_argument(
        "--chat", action="store_true", help="converse: words and pictures, turn by turn"
    )
    sample.add_argument("--think", action="store_true", help="write a plan before drawing")
    sample.add_argument("--out", default="sample.png", help="PNG to write (numbered when several)")
    sample.add_argument("--size", help="HEIGHTxWIDTH in pixels, or an aspect ratio like 16:9")
    sample.add_argument("--steps", type=int, help="flow steps")
    sample.add_argument("--guidance", type=float, help="1 = none; 2 to 5 follows the words closer")
    sample.add_argument("--sampler", choices=("euler", "heun"))
    sample.add_argument("--temperature", type=float, default=0.0, help="of words; 0 = likeliest")
    sample.add_argument("--top-p", type=float, default=1.0)
    sample.add_argument("--max-tokens", type=int)
    sample.add_argument("--seed", type=int, default=0)

    evaluate = command("evaluate", _evaluate, "Score a training run; writes scores.json.")
    evaluate.add_argument("--workdir", required=True)

    report = command("report", _report, "Write one self-contained HTML page about a run.")
    report.add_argument("--workdir", required=True)

    data = commands.add_parser("data", help="Look at and prepare data.")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = command(
        "show", _show, "Draw one packed batch as a picture.", overrides=True, group=actions
    )
    show.add_argument("--config", required=True)
    show.add_argument("--stage", default="pretrain", help="whose mixture and row length to use")
    show.add_argument("--step", type=int, default=0)
    show.add_argument("--out", default="batch.png")
    prepare = command("prepare", _prepare, "Fetch and convert a data set.", group=actions)
    prepare.add_argument("dataset", choices=("openmoji", "scenes"))
    prepare.add_argument("--out", required=True, help="folder for the ArrayRecord files")
    prepare.add_argument("--package", help="npm package as folder or .tgz, instead of fetching it")
    prepare.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    return parser


def _console():
    from rich.console import Console

    return Console(highlight=False)


def _train(args: argparse.Namespace) -> None:
    from unicom_jax.config import open_run
    from unicom_jax.training.run import run_stages

    config = open_run(Path(args.workdir), args.config, args.overrides)
    stages = tuple(args.stages.split(",")) if args.stages else None
    run_stages(config, Path(args.workdir), _console(), stages)


def _sample(args: argparse.Namespace) -> None:
    from unicom_jax.inference.command import run_sample

    run_sample(args, _console())


def _evaluate(args: argparse.Namespace) -> None:
    from unicom_jax.evaluation.command import run_evaluate

    run_evaluate(Path(args.workdir), _console())


def _report(args: argparse.Namespace) -> None:
    from unicom_jax.evaluation.report import write_report

    path = write_report(Path(args.workdir))
    _console().print(f"report: {path}")


def _show(args: argparse.Namespace) -> None:
    from data_pipelines.build import load_or_train_tokenizer, unified_loader
    from data_pipelines.show import show_batch
    from unicom_jax.config import resolve

    config = resolve(args.config, args.overrides)
    tokenizer = load_or_train_tokenizer(config, None)
    loader = unified_loader(config, args.stage, tokenizer)
    show_batch(loader.at(args.step), tokenizer, args.out)
    _console().print(f"batch {args.step} of stage {args.stage}: {args.out}")


def _prepare(args: argparse.Namespace) -> None:
    from data_pipelines.prepare import prepare

    _console().print(str(prepare(args.dataset, Path(args.out), args.package, args.size)))


if __name__ == "__main__":
    sys.exit(main())
