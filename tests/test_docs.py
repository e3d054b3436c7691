"""README.md, docs/, `--help` and the docstrings of configurations: links lead somewhere, and
commands have flags and keys that exist."""

from __future__ import annotations

import ast
import re
import shlex
import unicodedata
from functools import cache
from pathlib import Path

import pytest

from unicom_jax import cli
from unicom_jax.config.explain import explain
from unicom_jax.config.files import resolve

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*)$", text, re.M)
    return {_anchor(re.sub(r"[`*]", "", heading)) for heading in headings}


def _anchor(heading: str) -> str:
    kept = (c for c in heading.lower() if c in " -_" or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def documented_commands() -> list[str]:
    """Commands `unicom ...`, each on one line, of the pages' blocks, `--help` and docstrings."""
    blocks = []
    for page in PAGES:
        found = BLOCK.findall(page.read_text(encoding="utf-8"))
        blocks += [block for language, block in found if language in ("", "bash")]
    blocks += [text for name, text in vars(cli).items() if name.endswith("EXAMPLES")]
    for file in sorted((ROOT / "experiments").glob("*.py")):
        blocks.append(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = (
        re.search(r"(?:^|  )(unicom +[a-z]+ +(?:[a-z]+ +)*-.*|unicom config .*)", line)
        for line in lines
    )
    return list(dict.fromkeys(match[1] for match in found if match))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    targets = LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
    broken = []
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("command", documented_commands(), ids=lambda line: line[:60])
def test_a_documented_command_has_flags_and_keys_that_exist(command):
    words = [word for word in shlex.split(command, comments=True)[1:] if word != "$DATA"]
    args = cli._parse(words)  # ends the process where a flag is unknown or missing
    if args.command == "config":
        explain(args.key or "")
    file = ROOT / (getattr(args, "config", None) or "experiments/base.py")
    if file.parent.name == "experiments":  # the others are the reader's own
        resolve(str(file), [one for one in args.overrides if "=$" not in one])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_compiles(page):
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(block, str(page), "exec")
