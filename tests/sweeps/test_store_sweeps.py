"""A sweep whose workdir is in an object store: claims, folders of jobs, logs, table."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading

import pytest

from tests.stores import bucket_of_module, running_servers  # noqa: F401 - fixtures
from tests.sweeps.fake import FILE, write_fake_sweep, write_hand_made
from tests.sweeps.test_engines import wait
from tests.sweeps.test_folders import write_trained
from tests.sweeps.test_runner import TWO, Jobs, plan_of, run
from unicom_jax import cli
from unicom_jax.core import paths
from unicom_jax.core.paths import as_path
from unicom_jax.runs import store_lock, weights
from unicom_jax.runs.lock import is_locked, workdir_lock
from unicom_jax.runs.workdir import COMMITTED, stage_steps
from unicom_jax.sweeps import engines, outcomes, runner
from unicom_jax.sweeps.folders import prepare, used_bytes
from unicom_jax.sweeps.outcomes import BUSY, DONE, FAILED, claim_of, read_outcome, write_outcome
from unicom_jax.sweeps.outdated import facts_of
from unicom_jax.sweeps.plan import make_plan, write_jobs
from unicom_jax.sweeps.sweep import load_sweep
from unicom_jax.sweeps.work import work

# With one store in `make test` and both in `make test-slow`.
BOTH = pytest.mark.parametrize(
    "bucket",
    ["s3", pytest.param("gs", marks=pytest.mark.slow)],
    indirect=True,
    scope="module",
)
ELSEWHERE = {"host": "another", "process": 1, "since": "today", "boot": "b", "id": "i"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runner, "STORE_LOOK", 0.0)
    monkeypatch.setattr(runner, "STORE_AGAIN", 0.0)


def claim(workdir, id, holder):
    (claim_of(workdir, id) / ".lock").write_bytes(json.dumps(holder).encode())


# ---- claims and outcomes ----------------------------------------------------------------------


def test_a_plan_in_a_store_is_done_once_and_not_again(bucket):
    workdir, jobs, again = as_path(f"{bucket}/plan"), Jobs(), Jobs()
    ended = run(plan_of(TWO), workdir, jobs)
    assert sorted(jobs.started) == ["a", "b", "left", "right", "root"] and not ended.failed
    run(plan_of(TWO), workdir, again)
    assert again.started == []


def test_a_job_that_a_living_process_has_claimed_in_a_store_is_busy(bucket, monkeypatch):
    workdir = as_path(f"{bucket}/busy")
    claim(workdir, "root", ELSEWHERE)
    assert is_locked(claim_of(workdir, "root")) and not is_locked(claim_of(workdir, "left"))
    assert work(workdir, "root") == BUSY
    monkeypatch.setattr(store_lock, "STALE", -1.0)  # it has given no sign of life since
    assert not is_locked(claim_of(workdir, "root"))
    write_outcome(workdir, "root", status=DONE)
    assert work(workdir, "root") == DONE


def test_a_process_of_another_container_is_not_taken_for_one_that_has_ended(monkeypatch):
    """Its number may be free here, and both may have the name of the machine."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = store_lock._about()
    theirs = {**here, "process": ended.pid}
    assert store_lock._gone(theirs, here)
    monkeypatch.setattr(store_lock.os, "readlink", lambda path: "pid:[1]")
    assert not store_lock._gone(theirs, store_lock._about())


def test_a_slow_process_does_not_take_over_what_a_faster_one_has_taken_over(bucket, monkeypatch):
    """Both see a dead holder; the slow one acts on it when the other one is the holder."""
    path = as_path(f"{bucket}/slow") / ".lock"
    monkeypatch.setattr(store_lock, "STALE", -1.0)
    path.write_bytes(json.dumps({**ELSEWHERE, "id": "faster"}).encode())
    store_lock._evict(path, ELSEWHERE)
    assert json.loads(path.read_bytes())["id"] == "faster"
    monkeypatch.setattr(store_lock, "STALE", 120.0)
    path.with_name(".lock-evicted").write_bytes(b"")  # another one is removing it right now
    store_lock._evict(path, {**ELSEWHERE, "id": "faster"})
    assert path.is_file()


def test_a_process_whose_lock_was_taken_over_hears_of_it(bucket, monkeypatch):
    monkeypatch.setattr(store_lock, "TOUCH", 0.05)
    heard, folder = threading.Event(), as_path(f"{bucket}/lost")
    with workdir_lock(folder, lost=heard.set):
        for _ in range(100):  # its heartbeat may overwrite the first ones
            (folder / ".lock").write_bytes(json.dumps(ELSEWHERE).encode())
            if heard.wait(0.3):
                break
    assert heard.is_set()
    assert json.loads((folder / ".lock").read_bytes()) == ELSEWHERE


def test_a_claim_that_was_written_though_its_answer_was_lost_is_held(bucket, monkeypatch):
    """The client then asks again, and hears that the file exists."""
    create = paths.StorePath.create

    def twice(path, data):
        create(path, data)
        create(path, data)

    monkeypatch.setattr(paths.StorePath, "create", twice)
    with workdir_lock(as_path(f"{bucket}/twice")):
        assert is_locked(as_path(f"{bucket}/twice"))
    assert not is_locked(as_path(f"{bucket}/twice"))


def test_outcomes_in_a_store_are_read_again_only_where_they_changed(bucket, monkeypatch):
    workdir, read = as_path(f"{bucket}/outcomes"), []
    monkeypatch.setattr(
        outcomes, "_read", lambda path: read.append(path.name) or json.loads(path.read_bytes())
    )
    write_outcome(workdir, "a", status=FAILED)
    write_outcome(workdir, "b", status=DONE)
    for _ in range(2):
        found = outcomes.read_outcomes(workdir, ["a", "b", "c"])
        assert [found[id].get("status") for id in "abc"] == [FAILED, DONE, None]
    write_outcome(workdir, "a", status=DONE, steps=1)
    assert outcomes.read_outcomes(workdir)["a"]["steps"] == 1
    assert sorted(read) == ["a.json", "a.json", "b.json"]


# ---- folders ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(bucket, tmp_path_factory):
    """A sweep in a store whose stages are done, as far as its folders say."""
    folder = tmp_path_factory.mktemp("sweep")
    plan = write_trained(folder)
    paths.upload(folder, f"{bucket}/trained")
    return plan, as_path(f"{bucket}/trained")


@BOTH
def test_a_run_in_a_store_is_a_workdir_of_all_its_stages(trained):
    plan, workdir = trained
    run = plan.runs[0]
    folder = prepare(workdir, run.job)
    used = {"vision": ("encoder", 7), "codec": ("codec", 7), "unified": ("pretrain", 7)}
    assert weights.steps_in_use(folder) == used
    for job in plan.needed(run):
        given = job.folder(workdir) / job.label
        assert (folder / job.label).files() == given.files()
        assert (folder / job.label / "metrics.jsonl").read_text() == '{"step": 1}\n'
    windows = json.loads((folder / "data.json").read_text())["windows"]
    assert windows.keys() == {"encoder", "codec", "pretrain"}
    sizes = [(folder / name).stat().st_size for name in folder.files()]
    assert used_bytes(folder) == sum(sizes) > 0


@BOTH
def test_a_copy_of_a_stage_that_was_interrupted_in_a_store_is_made_again(trained, monkeypatch):
    plan, workdir = trained
    job = plan.runs[1].job
    step = job.folder(workdir) / "pretrain/checkpoints/7"
    copy = paths.copy_file

    def killed(source, target):
        if "pretrain/checkpoints" in str(target) and str(target).endswith("metadata"):
            raise KeyboardInterrupt
        copy(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(paths, "copy_file", killed)
        prepare(workdir, job)
    assert stage_steps(job.folder(workdir), "pretrain") == []
    (step / "params" / "half").write_bytes(b"half")
    folder = prepare(workdir, job)
    assert stage_steps(folder, "pretrain") == [7]
    given = plan.needed(plan.runs[1])[-1].folder(workdir)
    assert (folder / "pretrain").files() == (given / "pretrain").files()


def test_marks_of_complete_steps_are_copied_last_and_those_of_parts_first(bucket, tmp_path):
    names = ["7/" + COMMITTED, "7/params/" + COMMITTED, "7/params/z", "a"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    copied = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "copy_file", lambda source, target: copied.append(target))
        paths.copy_tree(tmp_path, f"{bucket}/marks", last=(COMMITTED,))
    order = [name.removeprefix(f"{bucket}/marks/") for name in copied]
    assert sorted(order[:2]) == ["7/params/z", "a"]
    assert order[2:] == [f"7/params/{COMMITTED}", f"7/{COMMITTED}"]


def test_a_copy_within_a_store_does_not_pass_through_this_machine(bucket, monkeypatch):
    source, target = as_path(f"{bucket}/one file"), as_path(f"{bucket}/copies/of it")
    source.write_bytes(b"content")
    monkeypatch.setattr(paths.StorePath, "open", None)
    paths.copy_file(source, target)
    assert target.read_bytes() == b"content"


# ---- engines ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("engine", ["local", pytest.param("slurm", marks=pytest.mark.slow)])
def test_an_engine_brings_back_how_a_job_in_a_store_ends(bucket, engine, tmp_path, monkeypatch):
    """That of one whose description is damaged."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("UNICOM_SLURM", "cluster=local")
    monkeypatch.chdir(tmp_path)
    workdir = as_path(f"{bucket}/{engine}")
    (workdir / "jobs" / "damaged.json").write_text("{")
    with engines.ENGINES[engine]() as submit:
        assert wait(submit(workdir, "damaged")) == FAILED
    assert "damaged.json is not JSON" in read_outcome(workdir, "damaged")["reason"]
    if engine == "local":
        assert "is not JSON" in (workdir / "logs" / "damaged.log").read_text()


class Crashed:
    """A submitit executor whose jobs end without a result."""

    def submit(self, function, workdir, id, name):
        self.name = name
        return self

    def done(self):
        return True

    def exception(self):
        return RuntimeError("has not produced any output")


def test_a_slurm_job_that_lost_its_claim_runs_elsewhere_and_one_that_crashed_failed(bucket):
    workdir, executor = as_path(f"{bucket}/lost-claim"), Crashed()
    handle = engines._Submitted(executor, workdir, "root")
    claim(workdir, "root", {**ELSEWHERE, "name": "another"})
    assert handle.poll() == BUSY and not read_outcome(workdir, "root")
    claim(workdir, "root", {**ELSEWHERE, "name": executor.name})  # its own, which it left behind
    assert handle.poll() == FAILED
    assert "has not produced any output" in read_outcome(workdir, "root")["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["s3"], indirect=True, scope="module")
def test_a_ray_task_brings_back_how_a_job_in_a_store_ends(bucket, request):
    request.getfixturevalue("ray_cluster")  # with the variables of the environment for the store
    workdir = as_path(f"{bucket}/ray")
    (workdir / "jobs" / "damaged.json").write_text("{")
    with engines.ENGINES["ray"]() as submit:
        assert wait(submit(workdir, "damaged")) == FAILED
    assert "damaged.json is not JSON" in read_outcome(workdir, "damaged")["reason"]
    assert "is not JSON" in (workdir / "logs" / "damaged.log").read_text()


# ---- results ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(bucket, tmp_path_factory):
    """FILE and the workdirs, on a disk and in a store, of a sweep with a variant that failed."""
    folder = tmp_path_factory.mktemp("scored")
    (folder / "fake.py").write_text(FILE)
    _, plan = write_fake_sweep(folder / "run")
    write_jobs(plan, folder / "run")
    paths.upload(folder / "run", f"{bucket}/run")
    return str(folder / "fake.py"), folder / "run", as_path(f"{bucket}/run")


@BOTH
@pytest.mark.parametrize("name", ["results.csv", "report.html"])
def test_the_table_and_the_report_of_a_store_are_those_of_a_disk(scored, name, capsys):
    file, here, there = scored
    command = {"results.csv": "table", "report.html": "report"}[name]
    printed = []
    for workdir in (here, there):
        assert cli.main(["sweep", command, file, f"--workdir={workdir}"]) == 0
        printed.append(capsys.readouterr().out.replace(str(workdir), "WORKDIR"))
    assert (there / name).read_bytes() == (here / name).read_bytes()
    assert printed[0] == printed[1]


@BOTH
def test_a_damaged_result_in_a_store_is_named_by_its_address(scored, capsys):
    """And not by that of the copy which the command has made and removed."""
    file, _, there = scored
    name = next(name for name in there.files() if name.endswith("scores.json"))
    whole = (there / name).read_bytes()
    for change, message in (
        (lambda path: path.write_bytes(b"{"), "is not JSON"),
        (lambda path: path.unlink(), f"is missing, although the run is done; remove {there}"),
    ):
        change(there / name)
        assert cli.main(["sweep", "table", file, f"--workdir={there}"]) == 1
        assert f"{there / name} {message}" in capsys.readouterr().err
    (there / name).write_bytes(whole)


@BOTH
def test_a_stage_of_a_store_that_was_trained_anew_is_named_by_its_place_in_the_sweep(
    scored, capsys
):
    file, _, there = scored
    run = next(run.job for run in make_plan(load_sweep(file)).runs if run.variant == "wide")
    label, stage = next(iter(run.inputs.items()))
    before = read_outcome(there, stage)
    facts = facts_of(there, run, label)
    for path, text in zip(facts, ("first", "second"), strict=True):
        path.write_text(text)
    write_outcome(there, stage, **{**before, "at": before["at"] + 3600})
    assert cli.main(["sweep", "table", file, f"--workdir={there}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"! {run.id}: runs/{run.id} holds an earlier training of {stage}; remove it" in said
    write_outcome(there, stage, **before)
    for path in facts:
        path.unlink()


@BOTH
def test_a_bucket_that_does_not_exist_is_named(scored, capsys):
    file, _, there = scored
    scheme = str(there).partition("://")[0]
    assert cli.main(["sweep", "run", file, f"--workdir={scheme}://no-such-bucket/x"]) == 1
    said = capsys.readouterr().err
    assert f"{scheme}://no-such-bucket/x/jobs/" in said and said.count("\n") == 1


@BOTH
def test_status_and_dry_run_read_a_store(scored, capsys):
    file, _, there = scored
    assert cli.main(["sweep", "status", file, f"--workdir={there}"]) == 0
    assert "18 done, 2 failed, 4 waiting" in capsys.readouterr().out
    assert cli.main(["sweep", "run", file, f"--workdir={there}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "24 jobs, 18 done" in text and "of them copies of shared stages" in text


@BOTH
def test_runs_in_a_store_are_compared(bucket, tmp_path, capsys):
    for name, rate in (("a", 0.4), ("b", 0.8)):
        folder = write_hand_made(tmp_path / name, seed=0, rate=rate, codec__steps=int(10 * rate))
        paths.upload(folder, f"{bucket}/{name}")
        shutil.rmtree(folder)
    assert cli.main(["compare", f"{bucket}/a", f"{bucket}/b"]) == 0
    assert "codec.steps: 4 | 8" in capsys.readouterr().out
