"""Packages import one way only: `PACKAGES` is the rule, checked on the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packages import ORDER, ROOT, imported_modules, packages, parsed, table

HOST_TYPES = (
    "unicom_jax.core.batch",
    "unicom_jax.core.image_policies",
    "unicom_jax.core.positions",
    "unicom_jax.core.paths",
)
SOURCES = (
    *HOST_TYPES,
    "data_pipelines.decoding",
    "data_pipelines.examples",
    "data_pipelines.faults",
    "data_pipelines.images",
    "data_pipelines.marks",
    "data_pipelines.scenes",
    "data_pipelines.segments",
)
SEQUENCES = (*SOURCES, "data_pipelines.sources")
WINGS = ("sequences", "loading", "build")  # what the batches of a stage are made with

# package -> what it may import of our own code, besides itself. The longest matching prefix counts.
MODELS = ("unicom_jax.core", "unicom_jax.models", "unicom_jax.families")
RUNS = ("unicom_jax.config", *MODELS, "unicom_jax.interop", "unicom_jax.runs", "data_pipelines")
PACKAGES: dict[str, tuple[str, ...]] = {
    "unicom_jax.config": ("unicom_jax.core.image_policies", "unicom_jax.core.sizes"),
    "unicom_jax.core": (),
    "unicom_jax.models": ("unicom_jax.core",),
    "unicom_jax.families": ("unicom_jax.core", "unicom_jax.models"),
    "unicom_jax.parallel": ("unicom_jax.core",),
    "unicom_jax.interop": ("unicom_jax.config", *MODELS),
    "unicom_jax.runs": (*RUNS, "unicom_jax.parallel"),
    "unicom_jax.inference": (*RUNS, "unicom_jax.parallel"),
    "unicom_jax.rl": (*RUNS, "unicom_jax.parallel", "unicom_jax.inference"),
    "unicom_jax.training": (*RUNS, "unicom_jax.parallel", "unicom_jax.rl"),
    "unicom_jax.exchange": RUNS,
    "unicom_jax.evaluation": (*RUNS, "unicom_jax.inference"),
    "unicom_jax.planning": (
        *RUNS,
        "unicom_jax.parallel",
        "unicom_jax.training",
        "unicom_jax.inference",
    ),
    "unicom_jax.sweeps": (
        *RUNS,
        "unicom_jax.parallel",
        "unicom_jax.training",
        "unicom_jax.evaluation",
        "unicom_jax.planning",
    ),
    "unicom_jax.commands": ("unicom_jax", "data_pipelines"),
    "unicom_jax.cli": ("unicom_jax", "data_pipelines", "experiments"),
    "unicom_jax.__main__": ("unicom_jax.cli",),
    "unicom_jax": (),
    "data_pipelines.decoding": (
        "data_pipelines.faults",
        "data_pipelines.incomplete",
        "unicom_jax.core.paths",
    ),
    "data_pipelines.incomplete": (),
    "data_pipelines.examples": HOST_TYPES,
    "data_pipelines.faults": (),
    "data_pipelines.marks": (),
    "data_pipelines.images": HOST_TYPES,
    "data_pipelines.segments": (),
    "data_pipelines.scenes": (*HOST_TYPES, "data_pipelines.examples"),
    "data_pipelines.sources": SOURCES,
    "data_pipelines.sequences": SEQUENCES,
    "data_pipelines.loading": (*SEQUENCES, "data_pipelines.sequences"),
    "data_pipelines.build": (*SEQUENCES, "data_pipelines.sequences"),
    "data_pipelines.batches": (*SEQUENCES, *(f"data_pipelines.{n}" for n in WINGS)),
    "data_pipelines.preparation": (*HOST_TYPES, "data_pipelines"),
    "data_pipelines": HOST_TYPES,
    "experiments": ("unicom_jax", "data_pipelines"),
}
OURS = ("unicom_jax", "data_pipelines", "experiments")

# No library file needs TensorFlow. torch and diffusers are extras: benchmarks compare with them,
# interop may write through them; nothing else touches them.
NOWHERE = ("tensorflow",)
EXTRAS = ("torch", "diffusers", "torchvision")
MAY_USE_EXTRAS = ("unicom_jax.interop", "experiments.benchmarks", "data_pipelines.bench")
ONLY_HOST = ("jax", "flax", "optax", "orbax")  # data pipelines never touch a device


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One line per import of `module` that the table forbids."""
    package = max((name for name in PACKAGES if within(module, name)), key=len)
    allowed = (package, *PACKAGES[package]) if package != "unicom_jax" else PACKAGES[package]
    found = []
    for name in imported_modules(source, module, is_package):
        ours = any(within(name, root) for root in OURS)
        extra = any(within(name, e) for e in EXTRAS)
        if (
            (ours and not any(within(name, prefix) for prefix in allowed))
            or any(within(name, prefix) for prefix in NOWHERE)
            or (extra and not any(within(module, prefix) for prefix in MAY_USE_EXTRAS))
            or (within(package, "data_pipelines") and any(within(name, p) for p in ONLY_HOST))
        ):
            found.append(f"{module} imports {name}")
    return found


def library_files() -> list[Path]:
    return sorted(p for root in OURS for p in (ROOT / root).rglob("*.py"))


def module_of(path: Path) -> tuple[str, bool]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return ".".join(parts[:-1] if is_package else parts), is_package


@pytest.mark.parametrize("path", library_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_file_imports_only_what_its_package_may(path):
    module, is_package = module_of(path)
    assert violations(path.read_text(encoding="utf-8"), module, is_package) == []


def test_what_takes_seconds_to_import_is_imported_by_nothing_that_every_run_needs():
    """torch by way of tensorboardX where it is installed, and SciPy's optimisers."""
    code = (
        "import sys; import unicom_jax.training.event_files, data_pipelines.scenes.source; "
        "sys.exit(', '.join({'torch', 'scipy.optimize'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_package_imports_one_above_it():
    for name, package in packages().items():
        above = ORDER[ORDER.index(name) + 1 :]
        assert not set(package.imports) & set(above), name


def test_the_documentation_lists_every_package_with_what_it_imports():
    page = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    for row in table(packages()).splitlines()[2:]:
        _, name, _, _, imports, _ = (cell.strip() for cell in row.split("|"))
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert line.rstrip("| ").endswith(f"| {imports}".rstrip("| ")), name


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unicom_jax.core.flow", "from unicom_jax.models import unified"),
        ("unicom_jax.core.flow", "from ..models import unified"),
        ("unicom_jax.core.flow", "from unicom_jax import models"),
        ("unicom_jax.families.unified", "import data_pipelines.sequences.packing"),
        ("unicom_jax.inference.generator", "def f():\n    import unicom_jax.training.loop"),
        ("unicom_jax.evaluation.scenes", "from unicom_jax.training import loop"),
        ("unicom_jax.training.loop", "from unicom_jax import cli"),
        ("data_pipelines.sequences.packing", "from unicom_jax.core.layers import Linear"),
        ("data_pipelines.sequences.packing", "import jax.numpy as jnp"),
        ("data_pipelines.sources.folder", "from data_pipelines.sequences import tasks"),
        ("unicom_jax.interop.transfer", "from unicom_jax.runs import checkpoint"),
        ("unicom_jax.training.loop", "from unicom_jax.exchange import export"),
        ("unicom_jax.families.unified", "import torch"),
        ("data_pipelines.sources.registry", "import tensorflow as tf"),
    ],
)
def test_checker_reports_a_forbidden_import(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unicom_jax.families.unified", "from unicom_jax.core.layers import Linear"),
        ("unicom_jax.training.loop", "from unicom_jax import models"),
        ("data_pipelines.sequences.packing", "from unicom_jax.core.batch import MixedBatch"),
        ("data_pipelines.sources.registry", "import tensorflow_datasets as tfds"),
        ("unicom_jax.interop.huggingface", "import torch.nn"),
    ],
)
def test_checker_accepts_an_allowed_import(module, source):
    assert violations(source, module) == []


def reexported(source: str, origins: dict[str, set[str]]) -> list[str]:
    """Names that `source` takes from modules that only import them.

    Args:
      origins: the names that each module imports and does not define.
    """
    return [
        f"{node.module}.{alias.name}"
        for node in ast.walk(parsed(source))
        if isinstance(node, ast.ImportFrom) and not node.level
        for alias in node.names
        if alias.name in origins.get(node.module or "", ())
    ]


def only_imported(source: str) -> set[str]:
    """Names that a module imports from another one at its top level."""
    body = parsed(source).body
    return {
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_names_are_imported_from_the_module_that_defines_them():
    files = [path for folder in (*OURS, "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    sources = {path: path.read_text(encoding="utf-8") for path in files}
    origins = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): only_imported(source)
        for path, source in sources.items()
        if path.name != "__init__.py"  # public namespaces
    }
    found = {
        str(path.relative_to(ROOT)): names
        for path, source in sources.items()
        if (names := reexported(source, origins))
    }
    assert not found
    assert reexported("from a.b import c, d", {"a.b": only_imported("from x import c")}) == [
        "a.b.c"
    ]
