"""Which tests run in one process of `pytest -n`, so that what is costly is made once.

All tests of a file do, with its fixtures. In some folders the files share more: a trained run, an
exported model, the programs of one generator. What takes longest comes first, whatever its number
of tests, so that short files fill up the end and no process waits for the other.
"""

from __future__ import annotations

from pathlib import PurePosixPath

# In this order. Files of the folders that come next compile programs too, but share none.
FOLDERS = ("training", "exchange", "families", "inference", "parallel", "rl", "experiments")
COMPILING = ("test_cli.py", "models", "core", "planning", "evaluation", "interop", "runs")


def group_of(test: str) -> str:
    """The folder or file of a test such as `tests/training/test_step.py::test_a[b]`."""
    file = PurePosixPath(test.partition("::")[0])
    folder = file.parts[1] if len(file.parts) > 2 else ""
    return f"tests/{folder}" if folder in FOLDERS else str(file)


def turn_of(test: str) -> int:
    """When a test runs: all of a number before those of the next."""
    order = (*FOLDERS, *COMPILING)
    part = PurePosixPath(test.partition("::")[0]).parts[1]
    return order.index(part) if part in order else len(order)


def scheduler(config, log):
    """Of pytest-xdist: tests of a group go to one process, in the order they were collected in."""
    from xdist.scheduler import LoadFileScheduling  # not installed where tests run in one process

    config.option.loadscopereorder = False  # not by the number of tests
    scheduling = LoadFileScheduling(config, log)
    scheduling._split_scope = group_of
    return scheduling
