"""What a wheel holds: one top-level name, the report's templates, imports that fit."""

from __future__ import annotations

import ast
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


def test_the_scripts_beside_the_configurations_are_not_in_a_wheel(built):
    there = {path.name for path in (built / "unicom_jax/experiments").glob("*.py")}
    assert {"scaling.py", "sweep_rows.py"}.isdisjoint(there)
    assert {"quickstart.py", "uae_3b.py", "unicom_7b.py"} <= there


def test_what_the_configurations_of_a_wheel_import_is_in_it(built):
    for path in (built / "unicom_jax/experiments").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("unicom_jax.exp"):
                folder = built / node.module.replace(".", "/")
                assert folder.is_dir(), (path, node.module)
                for alias in node.names:
                    assert (folder / f"{alias.name}.py").is_file(), (path, alias.name)


def test_no_file_of_a_wheel_imports_a_name_that_only_a_checkout_has(built):
    for path in built.rglob("*.py"):
        for name in imported_modules(path.read_text(encoding="utf-8"), "unicom_jax.x"):
            assert name.partition(".")[0] not in ("data_pipelines", "experiments"), path
