"""Text files are UTF-8 whatever the locale: every read and write says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.packages import parsed

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    p
    for folder in ("unicom_jax", "data_pipelines", "experiments")
    for p in (ROOT / folder).rglob("*.py")
)


def without_encoding(source: str) -> list[int]:
    """Lines that open a text file, or read or write its text, and name no encoding."""
    found = []
    for node in ast.walk(parsed(source)):
        if not isinstance(node, ast.Call) or any(key.arg == "encoding" for key in node.keywords):
            continue
        called, arguments = node.func, node.args
        if isinstance(called, ast.Attribute) and called.attr in ("read_text", "write_text"):
            found.append(node.lineno)
        elif isinstance(called, ast.Name) and called.id == "open":
            found += [node.lineno] * _is_text(arguments[1:])
        elif isinstance(called, ast.Attribute) and called.attr == "open":
            of = called.value.id if isinstance(called.value, ast.Name) else ""
            found += [node.lineno] * (
                of not in ("os", "tarfile", "Image", "PilImage") and _is_text(arguments)
            )
    return found


def _is_text(modes: list[ast.expr]) -> bool:
    return not (modes and isinstance(modes[0], ast.Constant) and "b" in str(modes[0].value))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_with_an_encoding(path):
    assert without_encoding(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source", ["path.read_text()", "open(name)", "open(name, 'w')", "path.open('a')"]
)
def test_the_checker_finds_what_has_none(source):
    assert without_encoding(source) == [1]
    assert without_encoding("open(name, 'rb'); path.open('wb'); path.read_text(encoding='x')") == []
