"""The flags of `unicom train`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

TRAIN = "Train the stages of a configuration one after the other, or resume a run."
TRAIN_EXAMPLES = """\
examples:
  unicom train --config=experiments/quickstart.py --workdir=runs/quickstart
  unicom train --workdir=runs/quickstart        # resume after an interruption, or do nothing
  unicom train --workdir=runs/quickstart --config.pretrain.steps=3000         # train longer
  unicom train --config=experiments/quickstart.py --workdir=runs/wide --config.codec.latent_dim=64
  unicom train --config=experiments/scenes_base.py --workdir=runs/sft --config.stages=sft \\
      --config.sft.init_from=runs/scenes_base:pretrain     # start from another run's weights

configuration: --config.KEY=VALUE sets any key; docs/keys.md lists them, and `unicom config explain
KEY` shows one. A run keeps its configuration in its workdir. When it resumes, keys that do not
change what is learned (length, logging, mesh, memory, location of the data) may change. Learning
rates, batches, mixtures, loss weights and guards may change with --allow-change. Sizes may not,
unless no stage that depends on them has started.

XLA flags are set for the accelerator (`unicom plan` prints them). Flags in LIBTPU_INIT_ARGS and
XLA_FLAGS take precedence; --config.xla_flags=off sets none.

several processes: start the same command once per host (experiments/launch/ has files for SLURM,
Kubernetes and ssh). The workdir must be on a shared file system, and all hosts must read the same
configuration. On TPU pods, under srun, and in indexed jobs with JAX_COORDINATOR_ADDRESS and
JAX_NUM_PROCESSES, the processes find each other. Elsewhere, or to override that, use flags:
  unicom train --workdir=/shared/run --coordinator=host0:8476 --processes=2 --process=0
  unicom train --workdir=/shared/run --coordinator=host0:8476 --processes=2 --process=1

stopping: SIGTERM or SIGHUP to any process, or Ctrl-C, saves a checkpoint and ends all processes
after the same step with status 75; run the same command to resume. A second Ctrl-C ends at once
with status 130 and keeps the last checkpoint. If a process dies, the others name it and end with
status 76, after --lost-after at the latest; if it is process 0, JAX may abort them before that,
with status 134. Then start all of them again."""


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="Python file with get_config(); default: the workdir's own"
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder of the run: checkpoints and metrics"
    )
    parser.add_argument(
        "--allow-change",
        action="store_true",
        help="accept new values of keys that change what is learned (rates, batches, mixtures, "
        "...); WORKDIR/config_history.jsonl records them",
    )
    parser.add_argument(
        "--stages",
        metavar="A,B",
        help="train only these stages of the configuration; pretrain-2 is the second pretrain",
    )
    parser.add_argument(
        "--compilation-cache",
        metavar="DIR",
        help="folder in which compiled programs are cached for the next start; 'off': no cache. "
        "Default: JAX_COMPILATION_CACHE_DIR if it is set, else compiled/ of the workdir (on a CPU: "
        "no cache)",
    )
    parser.add_argument(
        "--dump-hlo",
        metavar="DIR",
        help="write every program that XLA compiles to this folder, as text",
    )
    several = parser.add_argument_group("several processes (default: taken from the environment)")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument(
        "--processes", type=int, metavar="N", help="number of processes; 1: only this one"
    )
    several.add_argument("--process", type=int, metavar="I", help="index of this process, from 0")
    several.add_argument(
        "--process-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="longest wait for another process at the start; default 600",
    )
    several.add_argument(
        "--lost-after",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="a process that sends no signal for this long counts as gone; default 60",
    )
