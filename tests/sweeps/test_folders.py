"""The folder of a job: what it is given of the stages before it."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.runs.workdirs import write_run
from tests.sweeps.test_plan import sweep
from unicom_jax.config import ConfigError
from unicom_jax.runs import weights
from unicom_jax.runs.configuration import open_run, read_config
from unicom_jax.sweeps import folders
from unicom_jax.sweeps.folders import prepare, used_bytes
from unicom_jax.sweeps.plan import make_plan, write_jobs


def write_trained(workdir):
    """A sweep whose stages are done, as far as its folders say."""
    whole = write_run(workdir / "whole")
    plan = make_plan(sweep())
    write_jobs(plan, workdir)
    for job in plan.jobs.values():
        if not job.label:
            continue
        folder = job.folder(workdir)
        shutil.copytree(whole / job.label, folder / job.label)
        (folder / job.label / "metrics.jsonl").write_text('{"step": 1}\n')
        shutil.copytree(whole / "tokenizer", folder / "tokenizer")
        shutil.copy2(whole / "config.json", folder)
        (folder / "data.json").write_text(json.dumps({"windows": {job.label: {"documents": 8}}}))
    return plan


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    return write_trained(workdir), workdir


def inodes(folder):
    return sorted(path.stat().st_ino for path in folder.rglob("*") if path.is_file())


def test_a_run_is_a_workdir_of_all_its_stages_that_takes_no_space_for_their_weights(trained):
    plan, workdir = trained
    run = plan.runs[0]
    folder = prepare(workdir, run.job)
    used = {"vision": ("encoder", 7), "codec": ("codec", 7), "unified": ("pretrain", 7)}
    assert weights.steps_in_use(folder) == used
    for job in plan.needed(run):
        own, given = folder / job.label, job.folder(workdir) / job.label
        assert inodes(own / "checkpoints") == inodes(given / "checkpoints")
        assert not set(inodes(given / "checkpoints")) & {(own / "metrics.jsonl").stat().st_ino}
        assert (own / "metrics.jsonl").stat().st_ino != (given / "metrics.jsonl").stat().st_ino
    assert used_bytes(folder) < 100_000
    windows = json.loads((folder / "data.json").read_text())["windows"]
    assert windows.keys() == {"encoder", "codec", "pretrain"}


def test_what_earlier_stages_filled_in_is_in_the_configuration_of_a_job(trained):
    plan, workdir = trained
    folder = prepare(workdir, plan.runs[1].job)
    there = read_config(workdir / "whole")["data"]
    config = open_run(folder, None, ())
    assert config.data.tokenizer_fingerprint == there["tokenizer_fingerprint"] != ""
    assert config.data.vocab_size == there["vocab_size"]
    assert config.pretrain.learning_rate == 0.5  # of its variant


def test_preparing_a_folder_again_changes_nothing_and_finishes_what_was_begun(trained):
    plan, workdir = trained
    job = plan.runs[0].job
    folder = prepare(workdir, job)
    before = inodes(folder)
    prepare(workdir, job)
    assert inodes(folder) == before
    (folder / "config.json").unlink()  # killed before it was complete
    shutil.rmtree(folder / "pretrain")
    prepare(workdir, job)
    assert (folder / "pretrain/checkpoints/7").is_dir() and (folder / "config.json").is_file()


def test_a_folder_that_holds_an_earlier_training_of_a_stage_is_refused(trained, tmp_path):
    plan, workdir = trained
    shutil.copytree(workdir, tmp_path / "copy")
    run = plan.runs[0]
    stage = plan.needed(run)[-1]
    facts = stage.folder(tmp_path / "copy") / stage.label / "stage.json"
    facts.write_text('{"seconds": 1.0}')
    shutil.rmtree(run.job.folder(tmp_path / "copy"), ignore_errors=True)
    folder = prepare(tmp_path / "copy", run.job)
    facts.write_text('{"seconds": 2.0}')
    with pytest.raises(ConfigError, match=f"holds an earlier training of {stage.id}; remove it"):
        prepare(tmp_path / "copy", run.job)
    shutil.rmtree(folder)
    prepare(tmp_path / "copy", run.job)
    assert (folder / stage.label / "stage.json").read_text() == '{"seconds": 2.0}'


def with_autoencoder(trained, folder):
    """A copy of the sweep whose first stage has the files of an autoencoder; the run and stages."""
    plan, workdir = trained
    shutil.copytree(workdir, folder)
    run = plan.runs[0].job
    shutil.rmtree(run.folder(folder), ignore_errors=True)
    givers = {job.label: job.folder(folder) for job in plan.needed(plan.runs[0])}
    first = next(iter(givers.values())) / "autoencoder"
    first.mkdir()
    for name in ("config.json", "model.safetensors"):
        (first / name).write_text(name)
    return run, givers


def test_a_given_autoencoder_is_complete_after_an_interruption(trained, tmp_path):
    run, _ = with_autoencoder(trained, tmp_path / "copy")
    own = run.folder(tmp_path / "copy") / "autoencoder"
    own.mkdir(parents=True)
    (own / "config.json").write_text("config.json")
    prepare(tmp_path / "copy", run)
    assert sorted(path.name for path in own.iterdir()) == ["config.json", "model.safetensors"]


def test_the_stage_of_an_autoencoder_is_not_given_twice(trained, tmp_path):
    run, givers = with_autoencoder(trained, tmp_path / "copy")
    folder = run.folder(tmp_path / "copy")
    (folder / "autoencoder" / "checkpoints").mkdir(parents=True)
    folders._give_tokenizer({**givers, "autoencoder": next(iter(givers.values()))}, folder)
    assert [path.name for path in (folder / "autoencoder").iterdir()] == ["checkpoints"]


def test_a_first_stage_begins_with_its_configuration_alone(trained, tmp_path):
    plan, _ = trained
    job = next(job for job in plan.jobs.values() if not job.inputs)
    write_jobs(plan, tmp_path)
    folder = prepare(tmp_path, job)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert read_config(folder)["stages"] == [job.label]


def test_stages_with_other_tokenizers_are_refused(trained, tmp_path):
    plan, workdir = trained
    shutil.copytree(workdir, tmp_path / "copy")
    run = plan.runs[0].job
    shutil.rmtree(run.folder(tmp_path / "copy"), ignore_errors=True)
    path = plan.needed(plan.runs[0])[0].folder(tmp_path / "copy") / "config.json"
    other = json.loads(path.read_text())
    other["data"]["tokenizer_fingerprint"] = "other"
    path.write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="have other tokenizers; name one for all"):
        prepare(tmp_path / "copy", run)
