"""The benchmarks for accelerators: what they compare, count and read."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import attention as bench
from experiments.benchmarks import step
from tests.tiny import tiny_config
from unicom_jax.core.attention import padding_mask
from unicom_jax.parallel.accelerators import find_accelerator

SLOTS, SIZES = 16, (4, 2, 8)  # heads, key heads, channels


def test_errors_are_those_of_output_and_gradients_and_see_a_wrong_backend(monkeypatch):
    arrays = bench.inputs(1, SLOTS, *SIZES, jnp.float32)
    mask = padding_mask(jnp.array([11]), SLOTS)
    assert max(bench.errors(arrays, mask, "chunked")) < 1e-6
    right = bench.attention

    def wrong(q, k, v, mask, backend):
        return right(q, k, v * (0.5 if backend == "chunked" else 1.0), mask, backend=backend)

    monkeypatch.setattr(bench, "attention", wrong)
    np.testing.assert_allclose(bench.errors(arrays, mask, "chunked"), 0.5, rtol=1e-4)


def test_a_peer_that_cannot_run_is_named_with_the_reason():
    arrays = bench.inputs(1, SLOTS, *SIZES, jnp.float32)

    def broken(q, k, v):
        raise ValueError("no such hardware")

    able, notes = bench.contestants({"ours": lambda q, k, v: q, "theirs": broken}, arrays)
    assert [one.name for one in able] == ["ours", "ours"]  # forward, and with gradients
    assert notes == ["theirs: no such hardware"]


def test_the_step_that_is_timed_gets_batches_in_turn_and_its_own_state():
    seen = []

    def count(state, frozen, batch):
        seen.append((state, frozen, batch))
        return state + 1, {"loss": 10.0 * state}

    state, seconds, losses = step.timed(count, (0, "frozen"), ["a", "b"], rounds=2)
    assert state == step.WARMUP + 2
    assert seconds.shape == (2,)
    assert losses == [10.0 * n for n in range(step.WARMUP + 2)]
    assert seen == [(n, "frozen", "ab"[n % 2]) for n in range(step.WARMUP + 2)]


def test_without_its_data_a_stage_gets_rows_of_scenes_and_the_table_says_why():
    config = tiny_config(data__source__kind="array_record", data__source__path="nowhere")
    batches, about = step.some_batches(config, "pretrain", 2)
    assert len(batches) == 2
    assert "Scenes in place of its data" in about and "nowhere" in about
    assert step.some_batches(tiny_config(), "pretrain", 1)[1] == "its own data"


@pytest.mark.slow
def test_a_step_is_compiled_timed_and_printed(tmp_path, monkeypatch, capsys):
    config = tmp_path / "tiny.py"
    config.write_text("from tests.tiny import tiny_config\nget_config = tiny_config\n")
    arguments = [f"--config={config}", "--stage=pretrain", "--rounds=2", f"--keep={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["step", *arguments])
    monkeypatch.setattr(step, "find_accelerator", lambda kind: find_accelerator("NVIDIA H200"))
    step.main()
    printed = capsys.readouterr().out
    assert "4 rows of its own data" in printed and "tokens per second" in printed
    assert "MFU" in printed and "plan: all overlaps" in printed  # as if this were the accelerator
    assert (tmp_path / "pretrain.hlo").read_text().startswith("HloModule")
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert f"{jax.device_count()} x cpu" in printed
