"""What a wheel holds: one top-level name, the report's templates, imports that fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.packages import imported_modules

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files that go into a wheel."""
    pytest.importorskip("setuptools")
    target = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={target}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return target


def test_a_wheel_claims_one_top_level_name(built):
    assert [path.name for path in built.iterdir()] == ["unicom_jax"]


def test_a_wheel_has_the_report_templates_and_the_configurations(built):
    for name in (
        "evaluation/templates/report.html.j2",
        "evaluation/templates/report.css",
        "data_pipelines/sequences/packing.py",
        "experiments/base.py",
        "experiments/quickstart.py",
    ):
        assert (built / "unicom_jax" / name).is_file(), name
    assert not (built / "unicom_jax/experiments/benchmarks").exists()


def test_no_file_of_a_wheel_imports_a_name_that_only_a_checkout_has(built):
    for path in built.rglob("*.py"):
        for name in imported_modules(path.read_text(encoding="utf-8"), "unicom_jax.x"):
            assert name.partition(".")[0] not in ("data_pipelines", "experiments"), path
