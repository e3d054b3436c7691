"""The flags of `unicom import`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

IMPORT = "Import released weights, or a model exported to PyTorch, into a workdir."
IMPORT_EXAMPLES = """\
A part becomes step 0 of its stage in the workdir: training starts from it, and a stage that is not
trained (often the encoder) is used unchanged. Alternatively, the keys encoder.init_from,
autoencoder.init_from, unified.init_from, unified.uae.decoder.init_from, codec.init_from and
codec.decoder.init_from of a configuration name the folders, and `unicom train` reads them. Sizes
must be those of the configuration; if one differs, the message names its key.

examples:
  unicom import --config=experiments/unicom_7b.py --workdir=runs/unicom_7b \\
      --encoder=siglip2-so400m-patch16-naflex --language=Qwen2.5-7B-Instruct \\
      --decoder=FLUX.1-dev/transformer
  unicom import --config=experiments/unicom_7b.py --workdir=runs/unicom_7b \\
      --language=Qwen2.5-7B-Instruct --dry-run      # checks all names and shapes, writes nothing
  unicom import --config=experiments/cheers_1_5b.py --workdir=runs/cheers --cheers=Cheers \\
      --config.unified.cheers.positions=released
  unicom import --config=experiments/uae_3b.py --workdir=runs/uae \\
      --language=Qwen2.5-VL-3B-Instruct --decoder=stable-diffusion-3.5-large/transformer \\
      --autoencoder=stable-diffusion-3.5-large/vae
  unicom import --model=exports/quickstart --workdir=runs/again    # an earlier export"""


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--config", metavar="FILE", help="as for unicom train; default: the workdir's own"
    )
    parts = parser.add_argument_group("parts: folders as on the Hub, with config.json")
    parts.add_argument(
        "--encoder",
        metavar="DIR",
        help="SigLIP or SigLIP 2 (transformers); with a UAE it only compares pictures, in the "
        "reward cosine and in evaluation",
    )
    parts.add_argument(
        "--language",
        metavar="DIR",
        help="Qwen2, Qwen2.5 or Qwen3 (transformers); for a UAE, Qwen2.5-VL with its image tower",
    )
    parts.add_argument(
        "--compressor",
        metavar="DIR",
        help="compressor/ and decompressor/ in it, in UniTok's layout",
    )
    parts.add_argument("--decoder", metavar="DIR", help="FLUX or SD3 transformer (diffusers)")
    parts.add_argument("--autoencoder", metavar="DIR", help="KL autoencoder (diffusers)")
    parts.add_argument(
        "--cheers", metavar="DIR", help="Cheers as released: model and autoencoder together"
    )
    parser.add_argument(
        "--model", metavar="DIR", help="a whole model, as written by unicom export --to=pytorch"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and show the result, but write nothing",
    )
