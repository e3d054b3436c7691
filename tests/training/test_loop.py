"""What the loop reports, when it stops, and which steps it profiles. A toy stage stands in."""

from __future__ import annotations

import io
import json
import struct
from collections import Counter

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from tests.training.test_step import batch, trainer
from unicom_jax.parallel.accelerators import Accelerator
from unicom_jax.parallel.processes import ProcessGroup
from unicom_jax.training import loop
from unicom_jax.training.loop import LoopConfig, data_shares, train
from unicom_jax.training.saving import TrainingError


class Stream:
    """The same batch at every step, NaN in those of `bad`, with a loader's counts."""

    def __init__(self, start=0, bad=()):
        self.step, self.bad, self.counts, self.closed = start, bad, Counter(), False

    def __next__(self):
        made = batch()
        if self.step in self.bad:
            made["x"][0, 0] = np.nan
        self.step += 1
        self.counts.update(documents=3, broken=self.step % 2, left_over=0, slots=12, room=16)
        return made

    def close(self):
        self.closed = True


def run(directory, *, bad=(), opened=None, **settings):
    """The lines of metrics.jsonl; `opened` collects the streams that were read."""
    opened = [] if opened is None else opened

    def batches(start):
        opened.append(Stream(start, bad))
        return opened[-1]

    config = LoopConfig(**{"steps": 6, "log_every": 1, "save_every": 3, **settings})
    quiet = Console(file=io.StringIO())
    options = {"tokens_per_step": 16}
    train(trainer(), {}, batches, batches, config, directory, quiet, **options)
    return [json.loads(line) for line in (directory / "metrics.jsonl").open()]


def test_tensorboard_shows_what_the_json_lines_say(tmp_path):
    lines = run(tmp_path, steps=2)
    (events,) = (tmp_path / "tensorboard").iterdir()
    content, shown = events.read_bytes(), {}
    while content:  # length, checksum, event, checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        shown |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
        content = content[16 + length :]
    said = {(line["step"], key): value for line in lines for key, value in line.items()}
    said = {place: value for place, value in said.items() if place[1] != "step"}
    assert {place[1] for place in said} > {"loss", "loss/main", "gradient_norm", "learning_rate"}
    assert shown == pytest.approx(said, rel=1e-6)


def test_rates_are_reported_from_the_second_step_on_and_mfu_where_the_peak_is_known(
    tmp_path, monkeypatch
):
    first, second = run(tmp_path / "cpu", steps=2)
    rates = {"steps_per_second", "tokens_per_second", "data_wait"}
    assert not rates & first.keys() and rates < second.keys() and "mfu" not in second
    assert second["tokens_per_second"] == pytest.approx(16 * second["steps_per_second"])
    assert 0 < second["data_wait"] < 1
    slow = Accelerator("slow", ("cpu",), 1e6, 1, 1, "fsdp=-1", hbm=1.0, link=1.0, network=1.0)
    monkeypatch.setattr(loop, "find_accelerator", lambda kind: slow)
    monkeypatch.setattr(loop, "step_flops", lambda stage, frozen, batch, *shares: 1e3)
    known = run(tmp_path / "known", steps=2)[-1]
    share = known["steps_per_second"] * 1e3 / (1e6 * jax.device_count())
    assert known["mfu"] == pytest.approx(share)


def test_lost_documents_are_reported_as_shares_and_none_is_forgotten_between_reports(tmp_path):
    lines = run(tmp_path, log_every=2, eval_every=1, eval_batches=1)
    train_lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in train_lines] == [1, 2, 4, 6]
    # Every other batch had one broken document beside three good ones.
    assert [line["data/broken"] for line in train_lines] == pytest.approx([1 / 3, 0, 1 / 6, 1 / 6])
    assert {line["data/left_over"] for line in train_lines} == {0.0}
    assert {line["data/filled"] for line in train_lines} == {12 / 16}


def test_shares_are_of_what_a_loader_counts():
    pictures = data_shares(Counter(documents=8, truncated=2), Counter(documents=4))
    assert pictures == {"data/truncated": 0.5}


def test_tasks_and_sources_are_shares_of_the_documents_and_of_their_slots():
    now = Counter(
        {"documents": 8, "slots": 50, "room": 100, "task/edit": 4, "source/photos": 2}
        | {"source_slots/photos": 40}
    )
    assert data_shares(now, Counter()) == {
        "data/task/edit": 0.5,
        "data/source/photos": 0.25,
        "data/source_slots/photos": 0.8,
        "data/filled": 0.5,
    }


def test_what_other_processes_lost_is_reported_with_the_rest():
    class Two(ProcessGroup):
        def gather(self, what, text):
            return [text, json.dumps({"documents": 6, "unreadable": 2, "restarts": 1})]

    shares = data_shares(Counter(documents=4, unreadable=1), Counter(documents=2), Two())
    assert shares == {"data/unreadable": 3 / 8, "data/restarts": 1}


def test_too_many_non_finite_steps_in_a_row_stop_the_stage_and_name_the_key(tmp_path):
    with pytest.raises(TrainingError, match=r"2 steps in a row up to step 4 .*toy.learning_rate"):
        run(tmp_path, bad=(2, 3, 4), max_skipped=2)


def test_fewer_are_skipped_and_counted(tmp_path):
    lines = run(tmp_path, bad=(1, 3), max_skipped=2)
    assert [line["skipped_steps"] for line in lines] == [0, 1, 1, 2, 2, 2]
    assert [line["skipped_in_a_row"] for line in lines] == [0, 1, 0, 1, 0, 0]


def test_streams_are_closed_at_the_end_and_when_training_stops(tmp_path):
    opened = []
    run(tmp_path / "whole", steps=2, eval_every=1, opened=opened)
    assert len(opened) == 2 and all(stream.closed for stream in opened)
    with pytest.raises(TrainingError):
        run(tmp_path / "stopped", bad=(1,), max_skipped=1, opened=opened)
    assert len(opened) == 3 and opened[-1].closed


def test_the_profiled_window_counts_from_where_the_process_begins(tmp_path, monkeypatch):
    seen, streams = [], []
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(
            jax.profiler, name, lambda *_, name=name: seen.append((name, streams[-1].step))
        )
    run(tmp_path, steps=3, opened=streams)
    assert seen == []  # 0 steps: never
    run(tmp_path, steps=6, profile_start=1, profile_steps=1, opened=streams)
    assert seen == [("start_trace", 5), ("stop_trace", 5)]  # the batch of step 4 was just taken
