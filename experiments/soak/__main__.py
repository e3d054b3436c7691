"""A run that is killed again and again, on a disk that fills up, with damaged checkpoints and bad
data, must end like an undisturbed run on the same data, to the last bit.

    python -m experiments.soak [--kills 50] [--seed 0] [--folder DIR]

Prints the faults and what was lost, and ends with status 1 if anything was lost. The disk is a
small tmpfs, which only root may mount; without it the disk does not fill up, and the table says so.
Hardware: two CPU cores. The result is in docs/survival.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.soak import check
from experiments.soak.data import (
    BEFORE,
    BROKEN,
    STAGE,
    Poison,
    make_poison,
    write_config,
    write_records,
)
from experiments.soak.life import End, Plan, fork, live, wait

DISK_MB = 64
KILL, STOP = "killed (SIGKILL)", "asked to stop (SIGTERM)"
REFUSED = "saves that a full disk refused"
ENDED_FULL = "processes that a full disk ended"
STARTED_FULL = "processes started on a full disk"


class Soak:
    """Lives of one run until it is finished, and the account of them.

    Attributes:
      counts: fault -> how often it came.
      lost: one line for each thing that was lost, or went otherwise than it should.
      different: from the undisturbed run at the end; None: not compared.
    """

    def __init__(self, folder: Path, disk: Path, rng: np.random.Generator, has_disk: bool) -> None:
        self.folder, self.disk, self.rng, self.has_disk = folder, disk, rng, has_disk
        self.counts: Counter[str] = Counter()
        self.lost: list[str] = []
        self.different: list[str] | None = None
        self.workdir, self.ballast = disk / "soaked", disk / "ballast"
        self.damaged: dict[int, int] = {}

    def run(self, flags: list[str], poison: Poison, kills: int, show) -> None:
        status, number = -1, 0
        while status != 0 and not (len(self.lost) > 5):
            number += 1
            plan = self._plan(self.counts[KILL] + self.counts[STOP] < kills)
            expected = max(self.sound(), default=0)
            self.counts[STARTED_FULL] += self.ballast.exists()
            log = self.folder / f"life-{number}.log"
            end = live([*flags, f"--workdir={self.workdir}"], log, poison, plan, self.ballast)
            status = end.status
            self.account(number, plan, end, expected)
            if status != 0:
                self.damage()
            show(f"life {number}: {self.counts[KILL] + self.counts[STOP]} of {kills}")
        if (done := self.counts[KILL] + self.counts[STOP]) < kills:
            self.lost.append(f"the run ended after {done} of {kills} kills, so less was tried")

    def _plan(self, more: bool) -> Plan:
        """What comes next. A disk that is full already is freed after some batches."""
        rng, full, free = self.rng, -1, -1
        if self.ballast.exists():
            free = int(rng.integers(0, 8))
        elif self.has_disk and rng.random() < 0.25:
            full = int(rng.integers(0, 6))
            free = full + int(rng.integers(6, 16)) if rng.random() < 0.5 else -1
        if not more:
            return Plan(full=-1, free=free)
        number = signal.SIGKILL if rng.random() < 0.6 else signal.SIGTERM
        return Plan((int(rng.integers(1, 16)), number, float(rng.uniform(0, 0.2))), full, free)

    def sound(self) -> list[int]:
        there = check.checkpoints(self.workdir)
        self.damaged = {s: node for s, node in self.damaged.items() if there.get(s) == node}
        return [step for step in there if step not in self.damaged]

    def damage(self) -> None:
        """Cuts the newest checkpoint short, now and then, where there is another."""
        sound = self.sound()
        if len(sound) > 1 and max(sound) > max(self.damaged, default=0) and self.rng.random() < 0.3:
            item = check.ITEMS[self.rng.integers(len(check.ITEMS))]
            check.truncate(self.workdir, max(sound), item)
            self.damaged[max(sound)] = check.checkpoints(self.workdir)[max(sound)]
            self.counts[f"newest checkpoint truncated: {item}"] += 1

    def account(self, number: int, plan: Plan, end: End, expected: int) -> None:
        """Counts what happened; what should not have is added to `lost`."""

        def lose(what: str) -> None:
            self.lost.append(f"life {number}: {what}")

        found = re.search(rf"{STAGE}: resumes from the checkpoint of step (\d+)", end.said)
        if (begun := int(found[1]) if found else 0) != expected:
            lose(f"began at step {begun}, but {expected} was saved")
        self.counts[REFUSED] += end.said.count("could not be written under")
        self.counts["rollbacks past bad data"] += end.said.count("; rolls back to step")
        if "Traceback" in end.said:
            lose("a traceback: " + end.said.strip().splitlines()[-1])
        if end.status == -plan.kill[1] == -signal.SIGKILL:
            self.counts[KILL] += 1
        elif end.status == 75:
            self.counts[STOP] += 1
            step = int(re.search(r"stopped and saved at step (\d+)", end.said)[1])
            if step not in check.checkpoints(self.workdir):
                lose(f"step {step} was said to be saved")
        elif end.status == 1 and self.ballast.exists():
            self.counts[ENDED_FULL] += 1
            self.ballast.unlink()
        elif end.status != 0:
            lose(f"status {end.status}: {end.said.strip().splitlines()[-1:]}")


def mount(folder: Path) -> bool:
    """Puts a small file system there. False: not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def soak(folder: Path, kills: int, seed: int, console: Console) -> int:
    """The exit status: 1 if anything was lost."""
    began, rng = time.monotonic(), np.random.default_rng(seed)
    steps = 8 * kills + 40  # a life has 8 batches on average before it is killed
    poison = make_poison(rng, steps)
    disk, never = folder / "disk", Poison((), range(0))
    disk.mkdir()
    if not jax.config.jax_compilation_cache_dir:  # a life must not cost a compilation
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    has_disk = mount(disk)
    try:
        with console.status("stages before") as status:
            wait(fork(lambda: write_records(folder) or 0, folder / "records.log"))
            flags = [f"--config={write_config(folder, steps)}"]
            calm = folder / "calm"
            first = [*flags, f"--workdir={calm}", f"--stages={BEFORE}"]
            ends = [live(first, folder / "before.log", never, Plan(), disk / "none")]
            one = Soak(folder, disk, rng, has_disk)
            shutil.copytree(calm, one.workdir)
            flags.append(f"--stages={STAGE}")
            status.update("undisturbed run")
            whole = [*flags, f"--workdir={calm}"]
            ends.append(live(whole, folder / "calm.log", poison, Plan(), disk / "none"))
            for end in ends:
                if end.status:
                    raise SystemExit(f"the undisturbed run ended with {end.status}:\n{end.said}")
            one.run(flags, poison, kills, status.update)
            status.update("comparing")
            report = folder / "differences.txt"

            def compare() -> int:
                report.write_text("\n".join(check.differences(calm, one.workdir)), encoding="utf-8")
                return 0

            if wait(fork(compare, folder / "compare.log")):
                one.lost.append(
                    f"not comparable: {(folder / 'compare.log').read_text(encoding='utf-8')[-500:]}"
                )
            else:
                one.different = report.read_text(encoding="utf-8").splitlines()
        console.print(table(one, poison, steps, time.monotonic() - began))
        for line in [*one.lost, *(one.different or ())]:
            console.print(f"lost: {line}", markup=False)
        return int(bool(one.lost or one.different))
    finally:
        if has_disk:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


def table(one: Soak, poison: Poison, steps: int, seconds: float) -> Table:
    made = Table(title=f"A run of {steps} steps, {seconds / 60:.1f} minutes")
    made.add_column("fault", no_wrap=True)
    made.add_column("times", justify="right")
    for name in (KILL, STOP):
        made.add_row(name, str(one.counts[name]))
    for item in check.ITEMS:
        made.add_row(
            f"newest checkpoint truncated: {item}",
            str(one.counts[f"newest checkpoint truncated: {item}"]),
        )
    for name in (REFUSED, STARTED_FULL, ENDED_FULL):
        made.add_row(name, str(one.counts[name]) if one.has_disk else "not tried: cannot mount")
    made.add_row("records that are broken", str(len(BROKEN)))
    made.add_row("batches without a finite gradient", str(len(poison.alone) + len(poison.long)))
    made.add_row("rollbacks past bad data", str(one.counts["went back past bad data"]))
    made.add_section()
    same = "no" if one.different or one.different is None else "yes"
    made.add_row("weights, optimiser, position and metrics as in the undisturbed run", same)
    made.add_row("anything else lost or wrong", str(len(one.lost)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.soak")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="a new folder, which is kept; default: a temporary one"
    )
    options = parser.parse_args()
    os.environ["COLUMNS"] = "1000"  # of the lives' consoles: a line is a line
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    console = Console(width=100)
    if options.folder is not None:
        options.folder.mkdir(parents=True)
        sys.exit(soak(options.folder.absolute(), options.kills, options.seed, console))
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        sys.exit(soak(Path(folder), options.kills, options.seed, console))


if __name__ == "__main__":
    main()
