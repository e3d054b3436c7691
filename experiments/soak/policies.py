"""Stages of reinforcement learning that are killed again and again end like an undisturbed run, to
the last bit.

    python -m experiments.soak.policies [--kills 20] [--seed 0] [--folder DIR]

Captioner and drawer learn in turns. Each life of the run ends by SIGKILL at a random moment of a
random batch, while rollouts are made, weights are updated or a checkpoint is written, until there
were so many kills; then it is left alone. Ends with status 1 if weights, optimiser, position or
metrics differ. Hardware: two CPU cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.soak import check
from experiments.soak.data import BEFORE, STAGE, Poison, soak_config
from experiments.soak.life import End, Plan, fork, live, wait

TURNS = ("g4u", "u4g", "g4u")
LABELS = ("g4u", "u4g", "g4u-2")
MOST = 8  # batches of a life before it is killed
NEVER = Poison((), range(0))  # all batches are good
CALM = Plan()  # nothing happens


def policies_config(steps: int) -> ConfigDict:
    """`soak_config`, and turns of `steps` steps each, after which a checkpoint follows every
    other step."""
    config = soak_config(steps=4)
    config.stages = (*config.stages, *TURNS)
    for stage in TURNS:
        config[stage].update(
            {
                "steps": steps,
                "batch_size": 2,
                "group_size": 2,
                "max_tokens": 6,
                "draw_steps": 3,
                "warmup_steps": 1,
                "learning_rate": 1e-3,
                "log_every": 1,
                "save_every": 2,
            }
        )
    return config


def write_config(folder: Path, steps: int) -> Path:
    path = folder / "config.py"
    path.write_text(
        "from experiments.soak.policies import policies_config\n\n\n"
        f"def get_config():\n    return policies_config({steps})\n",
        encoding="utf-8",
    )
    return path


def steps_for(kills: int) -> int:
    """Steps of a turn with which a run survives so many kills: a life is killed after MOST / 2
    batches in the mean, and the next one repeats those behind the newest checkpoint."""
    return -(-kills * MOST // (2 * len(TURNS))) + 2


def soak(folder: Path, kills: int, seed: int) -> list[str]:
    """What was lost; nothing, if all is well.

    Raises:
      SystemExit: the undisturbed run failed.
    """
    rng, calm, soaked = np.random.default_rng(seed), folder / "calm", folder / "soaked"
    config = f"--config={write_config(folder, steps_for(kills))}"

    def life(workdir: Path, stages: str, log: str, plan: Plan = CALM) -> End:
        flags = [config, f"--workdir={workdir}", f"--stages={stages}"]
        return live(flags, folder / log, NEVER, plan, folder / "none")

    ends = [life(calm, f"{BEFORE},{STAGE}", "before.log")]
    shutil.copytree(calm, soaked)
    ends.append(life(calm, ",".join(LABELS), "calm.log"))
    for end in ends:
        if end.status:
            raise SystemExit(f"the undisturbed run ended with {end.status}:\n{end.said}")
    lost, killed, number, status = [], 0, 0, -1
    while status and not lost:
        number += 1
        plan = CALM
        if killed < kills:
            moment = int(rng.integers(1, MOST)), signal.SIGKILL, float(rng.uniform(0, 0.2))
            plan = Plan(moment, stages=LABELS)
        end = life(soaked, ",".join(LABELS), f"life-{number}.log", plan)
        status = end.status
        killed += status == -signal.SIGKILL
        if status not in (0, -signal.SIGKILL):
            lost.append(f"life {number}: status {status}: {end.said.strip().splitlines()[-1:]}")
        print(f"life {number}: {killed} of {kills} kills", flush=True)
    if killed < kills:
        lost.append(f"the run ended after {killed} of {kills} kills, so less was tried")
    return lost or compared(folder, calm, soaked)


def compared(folder: Path, calm: Path, soaked: Path) -> list[str]:
    """The differences of the two runs, found in a process of its own: this one starts no JAX."""
    report = folder / "differences.txt"

    def compare() -> int:
        found = [
            f"{label}: {one}" for label in LABELS for one in check.differences(calm, soaked, label)
        ]
        report.write_text("\n".join(found), encoding="utf-8")
        return 0

    if wait(fork(compare, folder / "compare.log")):
        said = (folder / "compare.log").read_text(encoding="utf-8")
        return [f"not comparable: {said[-500:]}"]
    return report.read_text(encoding="utf-8").splitlines()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.soak.policies")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new folder, which is kept")
    options = parser.parse_args()
    os.environ["COLUMNS"] = "1000"  # of the lives' consoles: a line is a line
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=options.folder is None)
        if not jax.config.jax_compilation_cache_dir:  # a life must not cost a compilation
            jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        lost = soak(folder, options.kills, options.seed)
    for line in lost:
        print(f"lost: {line}")
    print("the same as the undisturbed run" if not lost else f"{len(lost)} things were lost")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
