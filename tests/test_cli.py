"""The `unicom` command as a user meets it: what it prints, writes and returns."""

from __future__ import annotations

import functools
import io
import json
import logging
import pkgutil
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines.segments import UNDERSTOOD, Text
from data_pipelines.sequences.tokenizer import train_tokenizer
from unicom_jax.cli import main
from unicom_jax.commands import COMMANDS
from unicom_jax.inference import command

CONFIG = """
from tests.tiny import tiny_config

def get_config():
    return tiny_config()
"""
ONE_STEP = [f"--config.{stage}.steps=1" for stage in ("encoder", "codec", "pretrain")]


@pytest.fixture(scope="module", name="config")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A finished run of one step a stage."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", f"--config={config}", f"--workdir={workdir}", *ONE_STEP]) == 0
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the run that a test may damage."""
    return shutil.copytree(run, tmp_path / "copy")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    PilImage.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(path)
    return path


def error_line(capsys, *arguments) -> str:
    """The one line that a failing command leaves on stderr."""
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


# ---- help and flags ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_flags_and_a_function_that_exists(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0 and f"unicom {name}" in capsys.readouterr().out
    if isinstance(COMMANDS[name], functools.partial):
        assert callable(pkgutil.resolve_name(*COMMANDS[name].args))


def test_help_answers_without_starting_jax():
    code = (
        "import sys; from unicom_jax.cli import main\n"
        "try: main(['sample', '--help'])\n"
        "except SystemExit as end: assert end.code == 0 and 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--guidance" in done.stdout and "examples:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "--checkpoint=x", "--promt=a"], "did you mean --prompt?"),
        (["sample", "--checkpoint=x", "--top-p=2"], "from 0 to 1"),
        (["sample", "--checkpoint=x", "--steps=0"], "at least 1"),
        (["sample", "--checkpoint=x", "--guidance=inf"], "out of range"),
        (["sample", "--checkpoint=x", "--guidance=nan"], "out of range"),
        (["sample", "--checkpoint=x", "--guidance-interval=1"], "two numbers, like 0.1,0.8"),
        (["sample", "--checkpoint=x", "--config.seed=1"], "cannot change the configuration"),
        (["train", "--workdir=x", "--config.seed", "1"], "--config.seed=1"),
    ],
)
def test_a_wrong_flag_ends_with_status_2_and_the_fix(capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "nothing to do; give --prompt"),
        (["--prompt=a", "--chat"], "--prompt and --chat exclude each other"),
        (["--ask=what?"], "--ask needs a picture; add --image=FILE"),
        (["--prompt="], "--prompt is empty"),
        (["--image=x.png", "--edit= "], "--edit is empty"),
        (["--prompt=a", "--temperature=0"], "--temperature does nothing with --prompt"),
        (["--image=x.png", "--top-p=0.5", "--size=1:1"], "--size does nothing with --image"),
        (["--prompt=a", "--out=x.jpg"], "end the name in .png"),
        (["--image=x", "--together"], "--together does nothing with --image"),
        (["--prompt=a", "--edit-start=0.1"], "--edit-start does nothing with --prompt"),
        (["--image=x", "--top-k=5"], "--top-k does nothing at temperature 0"),
        (["--image=x", "--top-p=0.9", "--temperature=0"], "--top-p does nothing at temperature 0"),
        (["--image=x", "--ask=what?", "--together"], "add another --image=FILE"),
        (
            ["--image=x", "--image=y", "--ask=Image 3: what?", "--together"],
            "about image 3, but 2 pictures are given",
        ),
        (["--image=no-such.png"], "cannot read image no-such.png"),
    ],
)
def test_what_cannot_be_sampled_is_said_before_a_checkpoint_is_read(capsys, flags, words):
    line = error_line(capsys, "sample", "--checkpoint=no-such-run", *flags)
    assert line.startswith("unicom sample: ") and words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--workdir="], "--workdir is empty"),
        (["train", "--workdir=ftp://bucket/run"], "only paths on file systems and in gs://, s3://"),
        (
            ["train", "--workdir=hf://datasets/a/b"],
            "only paths on file systems and in gs://, s3://",
        ),
        (["train", "--workdir=s3://"], "only paths on file systems"),
        (["train", "--config=s3://bucket/c.py", "--workdir=r"], "paths on file systems alone"),
        (["train", "--workdir=a\\b"], "backslash"),
        (["train", "--workdir=caf\udce9"], "not UTF-8"),
        (["sample", "--checkpoint=az://b/r", "--prompt=x"], "in gs://, s3://, hf://"),
        (["sample", "--checkpoint=r", "--image=https://example.org/x.png"], "only paths"),
        (["data", "prepare", "scenes", "--out=gs://bucket/scenes"], "file systems alone"),
        (["export", "--checkpoint=r", "--to=pytorch", ""], "--target is empty"),
    ],
)
def test_a_path_that_cannot_be_is_refused_in_one_line(
    capsys, monkeypatch, tmp_path, arguments, words
):
    monkeypatch.chdir(tmp_path)
    assert words in error_line(capsys, *arguments)
    assert not any(tmp_path.iterdir())


def test_a_second_command_in_one_workdir_is_refused(run, config, capsys):
    hold = (
        "import sys; from pathlib import Path; from unicom_jax.runs.lock import workdir_lock\n"
        "with workdir_lock(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(run)], **pipes) as holder:
        holder.stdout.readline()
        for command in (["train"], ["import", f"--config={config}", "--encoder=x"]):
            line = error_line(capsys, *command, f"--workdir={run}")
            assert f"is in use by process {holder.pid} on" in line
        holder.stdin.close()


def test_a_tilde_in_a_flag_is_the_home_directory(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    line = error_line(capsys, "train", "--workdir=~/runs/one")
    assert f"{tmp_path}/runs/one holds no run yet" in line


def test_explain_shows_what_is_declared_of_a_key(capsys):
    assert main(["config", "explain", "codec.latent_dim"]) == 0
    assert "codec.latent_dim = 32" in capsys.readouterr().out
    assert "did you mean codec.latent_dim?" in error_line(
        capsys, "config", "explain", "codec.latent_dims"
    )


def test_an_unknown_config_key_is_named_with_the_nearest_one(capsys, config, tmp_path):
    where = f"--workdir={tmp_path / 'new'}"
    line = error_line(capsys, "train", f"--config={config}", where, "--config.codec.latent_dims=3")
    assert "codec.latent_dims" in line and "did you mean --config.codec.latent_dim?" in line


def test_an_unknown_stage_is_named_with_the_known_ones(capsys, config, tmp_path):
    line = error_line(capsys, "train", f"--config={config}", f"--workdir={tmp_path}", "--stages=a")
    assert "'a' is unknown" in line and "pretrain" in line


def test_an_interrupted_command_returns_130(capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_sample", interrupt)
    assert main(["sample", "--checkpoint=x", "--chat"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("error", [KeyError("lost"), ValueError("of a library")])
def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(command, "run_sample", fail)
    with pytest.raises(type(error)):
        main(["sample", "--checkpoint=x", "--chat"])


# ---- sampling ---------------------------------------------------------------------------------


def test_several_prompts_become_numbered_pictures(run, capsys, caplog, tmp_path):
    out = tmp_path / "new" / "drawn.png"
    flags = ["--prompt=a red circle", "--prompt=[b] star", f"--out={out}", "--size=1:1"]
    assert main(["sample", f"--checkpoint={run}", *flags]) == 0
    printed = capsys.readouterr()
    for number, prompt in ((1, "a red circle"), (2, "[b] star")):
        path = out.with_name(f"drawn-{number}.png")
        assert f"{path}: {prompt}" in printed.out
        assert PilImage.open(path).size == (32, 32)
    assert printed.err == ""
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_pictures_are_asked_and_described(run, picture, capsys):
    flags = [f"--image={picture}", f"--image={picture}", "--max-tokens=2", "--temperature=0.5"]
    assert main(["sample", f"--checkpoint={run}", *flags, "--ask=What is it?"]) == 0
    assert [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()] == [
        str(picture)
    ] * 2
    assert main(["sample", f"--checkpoint={run}", *flags]) == 0


def test_one_question_is_asked_about_several_pictures_together(run, picture, capsys, monkeypatch):
    heard = []

    def write(generator, conversations, **options):
        heard.extend(conversations)
        return ["a star"]

    monkeypatch.setattr(command.Generator, "write", write)
    flags = [f"--image={picture}", f"--image={picture}", "--together"]
    assert main(["sample", f"--checkpoint={run}", *flags, "--ask=Image 2: What is it?"]) == 0
    ((first, second, question),) = heard
    assert first.role == second.role == UNDERSTOOD and question == Text("Image 2: What is it?")
    assert capsys.readouterr().out == "a star\n"
    assert main(["sample", f"--checkpoint={run}", *flags, "--ask=What are they?"]) == 0
    assert 'like "Image 1: What are they?": quality may suffer' in capsys.readouterr().out


def test_an_edit_keeps_the_pictures_size_under_the_image_policy(run, picture, capsys, tmp_path):
    out = tmp_path / "edited"
    flags = [
        f"--image={picture}",
        "--edit=make it blue",
        f"--out={out}",
        "--steps=2",
        "--guidance-interval=0.5,1",
        "--edit-start=0.5",
    ]
    assert main(["sample", f"--checkpoint={run}", *flags]) == 0
    assert PilImage.open(out.with_suffix(".png")).size == (32, 32)
    assert "make it blue" in capsys.readouterr().out


def test_a_conversation_reads_pictures_and_ends_with_quit(run, picture, capsys, monkeypatch):
    lines = f"/image {picture}\nwhat is it?\n/image nowhere.png\n/quit\nnever read\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    assert main(["sample", f"--checkpoint={run}", "--chat", "--max-tokens=2"]) == 0
    printed = capsys.readouterr().out
    assert f"{picture}: 32 x 32" in printed and "! cannot read image nowhere.png" in printed
    assert sys.stdin.read() == "never read\n"


# ---- checkpoints ------------------------------------------------------------------------------


def sample_error(capsys, workdir) -> str:
    return error_line(capsys, "sample", f"--checkpoint={workdir}", "--prompt=a red circle")


def test_a_folder_without_a_run_is_no_checkpoint(capsys, tmp_path):
    line = sample_error(capsys, tmp_path / "nothing")
    assert str(tmp_path / "nothing" / "config.json") in line and "unicom train" in line


def test_a_stage_that_was_never_trained_is_named(capsys, copy):
    shutil.rmtree(copy / "codec")
    line = sample_error(capsys, copy)
    assert str(copy / "codec") in line and "unicom train" in line


def test_a_truncated_checkpoint_is_named_with_what_to_delete_and_nothing_else_is_said(copy):
    step = copy / "pretrain" / "checkpoints" / "1"
    for file in (step / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    # As a process of its own: Orbax's threads talk to stderr behind Python's back.
    command = [sys.executable, "-m", "unicom_jax.cli", "sample", f"--checkpoint={copy}"]
    done = subprocess.run([*command, "--prompt=a"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    line = done.stderr
    assert str(step / "params") in line and f"delete the folder {step}" in line


READS = """
import asyncio
from unicom_jax.cli import _own_the_process

async def fails_when_stopped():
    try:
        await asyncio.sleep(60)
    finally:
        raise ValueError("another read")

async def reads():
    task = asyncio.ensure_future(fails_when_stopped())
    await asyncio.sleep(0)
    raise ValueError("the first read")

_own_the_process("sample")
try:
    asyncio.run(reads())
except ValueError as error:
    print(error)
"""


def test_reads_that_fail_after_the_first_are_not_reported():
    done = subprocess.run([sys.executable, "-c", READS], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("the first read\n", "")


def test_a_configuration_of_another_version_is_named_by_its_key(capsys, copy):
    config = json.loads((copy / "config.json").read_text())
    del config["codec"]["compressor"]
    (copy / "config.json").write_text(json.dumps(config))
    line = sample_error(capsys, copy)
    assert "config.json lacks the key 'compressor'" in line


@pytest.mark.parametrize("use", ["sample", "train"])
def test_another_tokenizer_than_the_checkpoints_is_refused(capsys, copy, use):
    train_tokenizer(["something else entirely"], 300).save(copy / "tokenizer")
    flags = {
        "sample": [f"--checkpoint={copy}", "--prompt=a red circle"],
        "train": [f"--workdir={copy}"],
    }
    line = error_line(capsys, use, *flags[use])
    assert f"{copy}: was trained with tokenizer" in line and "put the tokenizer/ folder" in line


def test_a_damaged_tokenizer_is_named(capsys, copy):
    (copy / "tokenizer" / "tokenizer.json").write_text("{")
    assert str(copy / "tokenizer" / "tokenizer.json") in sample_error(capsys, copy)


def test_a_finished_run_has_nothing_to_do(run, capsys):
    assert main(["train", f"--workdir={run}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("nothing to do") == 3 and printed.err == ""
