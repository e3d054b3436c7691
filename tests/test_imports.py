"""The rooms of the house import one way only: `ROOMS` is the rule, checked on the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# room -> what it may import of our own code, besides itself. The longest matching prefix counts.
BELOW = ("unicom_jax.config", "unicom_jax.core", "unicom_jax.models", "data_pipelines")
ROOMS: dict[str, tuple[str, ...]] = {
    "unicom_jax.config": (),
    "unicom_jax.core": (),
    "unicom_jax.models": ("unicom_jax.core",),
    "unicom_jax.parallel": ("unicom_jax.core",),
    "unicom_jax.interop": BELOW,
    "unicom_jax.training": (*BELOW, "unicom_jax.parallel", "unicom_jax.interop"),
    "unicom_jax.inference": (*BELOW, "unicom_jax.parallel", "unicom_jax.interop"),
    "unicom_jax.evaluation": (*BELOW, "unicom_jax.interop", "unicom_jax.inference"),
    "unicom_jax.planning": (
        *BELOW,
        "unicom_jax.parallel",
        "unicom_jax.interop",
        "unicom_jax.training",
        "unicom_jax.inference",
    ),
    "unicom_jax.cli": ("unicom_jax", "data_pipelines", "experiments"),
    "unicom_jax.__main__": ("unicom_jax.cli",),
    "unicom_jax": (),
    "data_pipelines": ("unicom_jax.core.batch", "unicom_jax.core.positions"),
    "experiments": ("unicom_jax", "data_pipelines"),
}
OURS = ("unicom_jax", "data_pipelines", "experiments")

# No library file needs TensorFlow. torch and diffusers are extras: benchmarks compare with them,
# interop may write through them; nothing else touches them.
NOWHERE = ("tensorflow",)
EXTRAS = ("torch", "diffusers", "torchvision")
MAY_USE_EXTRAS = ("unicom_jax.interop", "experiments.benchmarks")
ONLY_HOST = ("jax", "flax", "optax", "orbax")  # data pipelines never touch a device


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imported_modules(source: str, module: str, is_package: bool = False) -> list[str]:
    """Full names of all that `source` imports, also inside functions, relative ones resolved."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - (1 if is_package else 0)
                parents = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*parents, base] if base else parents)
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """One line per import of `module` that the table forbids."""
    room = max((r for r in ROOMS if within(module, r)), key=len)
    allowed = (room, *ROOMS[room]) if room != "unicom_jax" else ROOMS[room]
    found = []
    for name in imported_modules(source, module, is_package):
        ours = any(within(name, root) for root in OURS)
        extra = any(within(name, e) for e in EXTRAS)
        if (
            (ours and not any(within(name, prefix) for prefix in allowed))
            or any(within(name, prefix) for prefix in NOWHERE)
            or (extra and not any(within(module, prefix) for prefix in MAY_USE_EXTRAS))
            or (room == "data_pipelines" and any(within(name, p) for p in ONLY_HOST))
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
def test_file_imports_only_what_its_room_may(path):
    module, is_package = module_of(path)
    assert violations(path.read_text(encoding="utf-8"), module, is_package) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unicom_jax.core.flow", "from unicom_jax.models import unified"),
        ("unicom_jax.core.flow", "from ..models import unified"),
        ("unicom_jax.core.flow", "from unicom_jax import models"),
        ("unicom_jax.models.unified", "import data_pipelines.packing"),
        ("unicom_jax.inference.generator", "def f():\n    import unicom_jax.training.loop"),
        ("unicom_jax.evaluation.scenes", "from unicom_jax.training import loop"),
        ("unicom_jax.training.loop", "from unicom_jax import cli"),
        ("data_pipelines.packing", "from unicom_jax.core.layers import Linear"),
        ("data_pipelines.packing", "import jax.numpy as jnp"),
        ("unicom_jax.models.unified", "import torch"),
        ("data_pipelines.sources", "import tensorflow as tf"),
    ],
)
def test_checker_reports_a_forbidden_import(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unicom_jax.models.unified", "from unicom_jax.core.layers import Linear"),
        ("unicom_jax.training.loop", "from unicom_jax import models"),
        ("data_pipelines.packing", "from unicom_jax.core.batch import MixedBatch"),
        ("data_pipelines.sources", "import tensorflow_datasets as tfds"),
        ("unicom_jax.interop.huggingface", "import torch.nn"),
    ],
)
def test_checker_accepts_an_allowed_import(module, source):
    assert violations(source, module) == []
