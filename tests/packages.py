"""Packages, their sizes and what each imports of the others, as a Markdown table.

python -m tests.packages            of this checkout
python -m tests.packages OTHER      of another one
"""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

# From the bottom to the top: each package imports only those before it.
ORDER = (
    "unicom_jax.core",
    "data_pipelines",
    "unicom_jax.config",
    "unicom_jax.models",
    "unicom_jax.families",
    "unicom_jax.parallel",
    "unicom_jax.interop",
    "unicom_jax.runs",
    "unicom_jax.exchange",
    "unicom_jax.inference",
    "unicom_jax.rl",
    "unicom_jax.training",
    "unicom_jax.evaluation",
    "unicom_jax.planning",
    "unicom_jax.sweeps",
)


class Package(NamedTuple):
    files: int
    lines: int
    imports: tuple[str, ...]  # packages below


@functools.cache
def parsed(source: str) -> ast.Module:
    """Kept, because several tests read every file."""
    return ast.parse(source)


def imported_modules(source: str, module: str, is_package: bool = False) -> list[str]:
    """Full names of all that `source` imports, also inside functions, relative ones resolved."""
    names = []
    for node in ast.walk(parsed(source)):
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


def packages(root: Path = ROOT, order: tuple[str, ...] = ORDER) -> dict[str, Package]:
    """Every package of `order` that is there; `data_pipelines` with its wings is one."""
    found = {}
    for name in order:
        files = sorted((root / name.replace(".", "/")).rglob("*.py"))
        if not files:
            continue
        names: set[str] = set()
        for path in files:
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            source = path.read_text(encoding="utf-8")
            names |= set(imported_modules(source, module, path.name == "__init__.py"))
        imports = tuple(
            other
            for other in order
            if other != name and any(n == other or n.startswith(f"{other}.") for n in names)
        )
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
        found[name] = Package(len(files), lines, imports)
    return found


def table(found: dict[str, Package]) -> str:
    def short(name: str) -> str:
        return f"`{name.removeprefix('unicom_jax.')}`"

    rows = [
        f"| {short(name)} | {one.files} | {one.lines:,} | {', '.join(map(short, one.imports))} |"
        for name, one in found.items()
    ]
    return "\n".join(["| package | files | lines | imports |", "|---|---|---|---|", *rows])


if __name__ == "__main__":
    measured = packages(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
    print(table(measured))
    print(f"\n{len(measured)} packages, {sum(len(p.imports) for p in measured.values())} edges")
