"""Which tests run in one process of `pytest -n`, so that what is costly is made once.

All tests of a file do, with its fixtures. In the folders below the files share more: a trained run,
an exported model, the programs of one generator. Tests of these folders also take longest, so they
come first and the files of the other folders fill up what is left.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from xdist.scheduler import LoadFileScheduling

FOLDERS = ("training", "exchange", "inference", "parallel", "families", "experiments")


def group_of(test: str) -> str:
    """The folder or file of a test such as `tests/training/test_step.py::test_a[b]`."""
    file = PurePosixPath(test.partition("::")[0])
    folder = file.parts[1] if len(file.parts) > 2 else ""
    return f"tests/{folder}" if folder in FOLDERS else str(file)


class SharedFixtures(LoadFileScheduling):
    """Tests of a group go to one process; the groups with most tests go first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
