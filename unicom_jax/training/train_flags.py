"""The flags of `unicom train`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

TRAIN = "Train the stages of a configuration one after the other, or go on where a run stands."
TRAIN_EXAMPLES = """\
examples:
  unicom train --config=experiments/quickstart.py --workdir=runs/quickstart
  unicom train --workdir=runs/quickstart        # go on after an interruption, or do nothing
  unicom train --workdir=runs/quickstart --config.pretrain.steps=3000         # train longer
  unicom train --config=experiments/quickstart.py --workdir=runs/wide --config.codec.latent_dim=64
  unicom train --config=experiments/scenes_base.py --workdir=runs/sft --config.stages=sft \\
      --config.sft.init_from=runs/scenes:continue          # start from another run's weights

XLA gets the flags that suit the accelerator (unicom plan shows them; LIBTPU_INIT_ARGS and XLA_FLAGS
have the last word; --config.xla_flags=off leaves them out).

--config.KEY=VALUE sets any key; docs/keys.md lists them, `unicom config explain KEY` shows one. A
run keeps its configuration. When it resumes, keys that do not change what is learned (length,
logging, mesh, memory, location of the data) may change; learning rates, batches, mixtures, loss
weights and guards may with --allow-change; sizes may not, unless no stage that depends on them has
started.

several processes: start the same command once a host (experiments/launch/ has SLURM, Kubernetes and
ssh), with a workdir on a shared file system and a configuration that all of them see. On TPU pods,
under srun and in indexed jobs with JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES they find each
other; elsewhere, and instead, flags say where they meet:
  unicom train --workdir=/shared/run --coordinator=host0:8476 --processes=2 --process=0
  unicom train --workdir=/shared/run --coordinator=host0:8476 --processes=2 --process=1

SIGTERM to any of them, or Ctrl-C, ends all after the same step, saved, with status 75: the same
command goes on. A second Ctrl-C ends at once, with status 130 and the last checkpoint kept. When
a process dies, the others say which one and end with status 76, after --lost-after at the latest;
when it is process 0, JAX may abort them first, with status 134. Start all of them again then."""


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="Python file with get_config(); default: the workdir's own"
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="where checkpoints and metrics go"
    )
    parser.add_argument(
        "--allow-change",
        action="store_true",
        help="take new values of keys that change what is learned (rates, batches, mixtures, ...); "
        "WORKDIR/config_history.jsonl keeps them",
    )
    parser.add_argument(
        "--stages",
        metavar="A,B",
        help="only these of the configuration's stages; pretrain-2 is the second time of a stage",
    )
    parser.add_argument(
        "--compilation-cache",
        metavar="DIR",
        help="keep compiled programs there, for the next start; 'off': nowhere. Default: "
        "JAX_COMPILATION_CACHE_DIR if it is set, else compiled/ of the workdir, but not on a CPU",
    )
    parser.add_argument(
        "--dump-hlo", metavar="DIR", help="write every program there as XLA compiles it, as text"
    )
    several = parser.add_argument_group("several processes (by default what the environment says)")
    several.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 waits for the others"
    )
    several.add_argument("--processes", type=int, metavar="N", help="how many; 1: this one alone")
    several.add_argument("--process", type=int, metavar="I", help="which this one is, from 0")
    several.add_argument(
        "--process-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="longest wait for another process; default 600",
    )
    several.add_argument(
        "--lost-after",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="a process without a sign for so long is gone; default 60",
    )
