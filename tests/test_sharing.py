"""What `pytest -n` keeps together."""

from __future__ import annotations

import pytest

from tests.packages import ROOT
from tests.sharing import FOLDERS, group_of


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/training/test_step.py::test_a[b]", "tests/training"),
        ("tests/parallel/plan/test_traffic.py::test_a", "tests/parallel"),
        ("tests/core/test_flow.py::WithAndWithoutJit::test_a", "tests/core/test_flow.py"),
        ("tests/test_cli.py::test_a", "tests/test_cli.py"),
    ],
)
def test_tests_of_a_sharing_folder_or_of_a_file_stay_together(test, group):
    assert group_of(test) == group


def test_the_folders_that_share_are_there():
    assert all((ROOT / "tests" / folder).is_dir() for folder in FOLDERS)
