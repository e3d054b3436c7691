"""What `pytest -n` keeps together."""

from __future__ import annotations

import pytest

from tests.packages import ROOT
from tests.sharing import COMPILING, FOLDERS, group_of, turn_of


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


def test_what_takes_longest_comes_first_and_a_group_stays_in_one_piece():
    shared, compiling, short = (
        turn_of(f"tests/{name}::test_a")
        for name in ("training/test_step.py", "test_cli.py", "test_imports.py")
    )
    assert shared < compiling < short == turn_of("tests/data/sources/test_text.py::test_a")
    assert len({turn_of(f"tests/{folder}/test_a.py::test_a") for folder in FOLDERS}) == len(FOLDERS)


def test_the_order_is_that_in_which_this_run_collected(request):
    turns = [turn_of(item.nodeid) for item in request.session.items]
    assert turns == sorted(turns)


def test_folders_and_files_with_a_turn_of_their_own_are_there():
    assert all((ROOT / "tests" / folder).is_dir() for folder in FOLDERS)
    assert all((ROOT / "tests" / name).exists() for name in COMPILING)
