"""The flags of `unicom export`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

from unicom_jax.runs.step_flag import add_step_flag

EXPORT = "Export a trained model, or a part of it, to PyTorch."
EXPORT_EXAMPLES = """\
A whole model is exported with its own code; to use it, a script needs only torch and transformers:

  model = AutoModel.from_pretrained("DIR", trust_remote_code=True)
  model.caption(picture); model.draw("a red circle"); model.edit(picture, "make it blue")

examples:
  unicom export --checkpoint=RUN --to=pytorch --verify exports/model
  unicom export --checkpoint=RUN --to=pytorch --dtype=bf16 --max-shard-size=2GB exports/model
  unicom export --checkpoint=RUN --to=pytorch --weights=base exports/base  # without adapters
  unicom export --checkpoint=RUN --to=peft exports/adapters
  unicom export --checkpoint=RUN --to=siglip2 exports/encoder      # a class of transformers"""
TARGETS = (
    *("pytorch", "peft"),
    *("siglip2", "qwen2", "qwen3", "qwen2.5-vl", "flux", "sd3", "autoencoder"),
)


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="the workdir of a training run"
    )
    add_step_flag(parser)
    parser.add_argument(
        "--to",
        required=True,
        choices=TARGETS,
        help="pytorch: the whole model; peft: the adapters of a LoRA stage; others: one part, in "
        "the layout of transformers or diffusers",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        default="fp32",
        help="type of the weights; default: fp32. A whole model keeps its codec in fp32",
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file; default: 5GB"
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "raw", "base"),
        default="",
        help="ema: averaged; raw: as trained; base: of a LoRA stage, without adapters. Default: "
        "the weights that sample and evaluate use",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="run the model in JAX and in PyTorch and compare the results",
    )
