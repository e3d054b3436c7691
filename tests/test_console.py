"""What commands print is text, and what cannot be printed ends no work."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.table import Table

from unicom_jax.console import PlainConsole


def shown(*objects) -> str:
    file = io.StringIO()
    PlainConsole(file=file, width=40).print(*objects)
    return file.getvalue()


@pytest.mark.parametrize("text", ["runs/lr[3e-4]", "[bold]x[/nope] [/]", ":star:", "x" * 100])
def test_text_is_printed_as_it_is(text):
    assert shown(text) == text + "\n"


def test_cells_of_a_table_are_text():
    table = Table()
    table.add_column("kind")
    table.add_row("[/x]")
    assert "[/x]" in shown(table)


PRINT = """
import sys
from unicom_jax.console import PlainConsole, protect_output, settle_output
protect_output()
console = PlainConsole()
for line in range(3000):
    console.print(f"line {line} \\udce9 ü")
settle_output()
print("done", file=open(sys.argv[1], "w"))
"""


def run(tmp_path, redirection, **environment):
    command = f'"{sys.executable}" -c \'{PRINT}\' "{tmp_path}/result" {redirection}'
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
    )
    return done, (tmp_path / "result").exists()


@pytest.mark.parametrize(
    "redirection",
    ["> /dev/full", "| head -1", ">&-", ">&- 2>&- <&-", "> /dev/full 2>&1"],
    ids=["a full disk", "a closed pipe", "no stdout", "no streams", "a full disk for both"],
)
def test_output_that_cannot_be_written_ends_no_work(tmp_path, redirection):
    done, finished = run(tmp_path, redirection)
    assert finished and done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_characters_that_the_terminal_lacks_are_replaced(tmp_path, encoding):
    done, finished = run(tmp_path, "| head -1", PYTHONIOENCODING=encoding)
    assert finished and done.returncode == 0 and done.stdout.startswith("line 0 ?")


def test_bytes_that_are_no_utf8_are_read_as_replaced_characters():
    code = "from unicom_jax.console import protect_output; protect_output(); print(ascii(input()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b"caf\xe9\n",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.stdout == b"'caf\\ufffd'\n"
