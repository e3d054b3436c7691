"""The flags of `unicom plan`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

PLAN = "Plan memory, time and communication of a configuration on hardware that you do not have."
PLAN_EXAMPLES = """\
examples:
  unicom plan --config=experiments/unicom_7b.py --topology=v5p:8x8x4
  unicom plan --config=experiments/unicom_7b.py --topology=v6e:16x16 --slices=2
  unicom plan --config=experiments/unicom_7b.py --topology=h100:128 --stage=pretrain
  unicom plan --config=experiments/unicom_7b.py --topology=h200:8 --stage=sample
  unicom plan --config=experiments/unicom_7b.py --topology=v6e:16x16 --stage=pretrain --search
  unicom plan --config=experiments/quickstart.py --topology=cpu:8 --config.mesh=fsdp=4,tensor=2

topologies: TPUs by the chips along each axis of a slice's torus (v4, v5p, tpu7x: three axes; v5e,
v6e: two), GPUs by their number (a100, a100-80, h100, h200; eight a node), cpu:N for a look at the
exchanges of a small configuration. v5p:8x8x4 has 256 chips; Google counts its cores and calls it
v5p-512.

The train step of each stage is compiled as in a run, from shapes alone. This needs the compiler for
the hardware, not the hardware:
  TPU   pip install 'jax[tpu]'
  GPU   pip install --no-deps jax-cuda12-pjrt==V jax-cuda12-plugin==V nvidia-cuda-nvcc-cu12
with V the version of jax. Without it, and with --estimate, the table is an estimate and says so. A
7B step compiles in one to four minutes on a core. Stages with many convolutions (codec, Cheers)
take much longer for TPUs; use --quick for them. An estimate takes less than a minute per stage.

Times are the least that the peak rates allow: each loop of the program takes as long as its slowest
part (products, main memory, links, network) if all overlap, and their sum if nothing does.
docs/plan.md says how to read the table, and how far to trust it.

Exit status 1 when a stage does not fit into memory; the message names a setting that should."""

COMPILED = 3  # settings of a search


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="as for unicom train")
    parser.add_argument(
        "--topology", required=True, metavar="KIND:SIZE", help="v5p:8x8x4, v6e:16x16, h100:128, ..."
    )
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N", help="TPU slices of that size; default 1"
    )
    parser.add_argument(
        "--stage",
        metavar="A,B",
        help="plan only these; default: all stages of the configuration except those of "
        "reinforcement learning. 'sample' plans generation",
    )
    parser.add_argument(
        "--keep", "--dump-hlo", metavar="DIR", help="write the compiled programs there, as text"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="do not compile, even if a compiler is installed"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile for TPUs with the least effort: many times faster, but the program keeps "
        "nothing in VMEM, so memory traffic is overstated",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="rank meshes, remat and batches by estimates, then compile the best ones",
    )
    parser.add_argument(
        "--compile",
        type=int,
        metavar="N",
        help=f"number of settings that a search compiles; default {COMPILED}",
    )
