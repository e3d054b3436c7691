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
      --config.sft.init_from=runs/scenes:continue          # start from another run's weights

XLA's flags are set for the accelerator (unicom plan shows them). Flags in LIBTPU_INIT_ARGS and
XLA_FLAGS take precedence, and --config.xla_flags=off sets none.

--config.KEY=VALUE sets any key; docs/keys.md lists them, `unicom config explain KEY` shows one. A
run keeps its configuration. When it resumes, keys that do not change what is learned (length,
logging, mesh, memory, location of the data) may change; learning rates, batches, mixtures, loss
weights and guards may with --allow-change; sizes may not, unless no stage that depends on them has
started.

several processes: start the same command once per host (experiments/launch/ has SLURM, Kubernetes
and ssh), with a workdir on a shared file system and a configuration that all of them see. On TPU
pods, under srun and in indexed jobs with JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES they find
each other. Elsewhere, or to override that, flags say how to connect:
  unicom train --workdir=/shared/run --coordinator=host0:8476 --processes=2 --process=0
  unicom train --workdir=/shared/run --coordinator=host0:8476 --processes=2 --process=1

SIGTERM or SIGHUP to any of them, or Ctrl-C, saves and ends all after the same step with status 75;
run the same command to resume. A second Ctrl-C ends at once, with status 130; the last checkpoint
is kept. When a process dies, the others say which one and end with status 76, after --lost-after at
the latest; if it is process 0, JAX may abort them first, with status 134. Then start all of them
again."""


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
        help="cache compiled programs there, for the next start; 'off': no cache. Default: "
        "JAX_COMPILATION_CACHE_DIR if it is set, else compiled/ of the workdir, but not on a CPU",
    )
    parser.add_argument(
        "--dump-hlo", metavar="DIR", help="write the text of every program that XLA compiles there"
    )
    several = parser.add_argument_group("several processes (default: as the environment says)")
    several.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 waits for the others"
    )
    several.add_argument(
        "--processes", type=int, metavar="N", help="number of processes; 1: only this one"
    )
    several.add_argument("--process", type=int, metavar="I", help="index of this process, from 0")
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
        help="a process that is silent for so long counts as gone; default 60",
    )
