"""How programs of tests are compiled."""

from __future__ import annotations

import threading

import pytest
from jax._src.interpreters import mlir

from tests.compiling import PROGRAMS, TRIED


@pytest.mark.skipif(not TRIED, reason="contexts are shared where that was tried")
def test_programs_of_a_thread_share_contexts_and_let_them_go():
    found = []
    turn = threading.Thread(
        target=lambda: found.extend(mlir.make_ir_context() for _ in range(PROGRAMS + 1))
    )
    turn.start()
    turn.join()
    assert all(context is found[0] for context in found[:PROGRAMS])
    assert found[PROGRAMS] is not found[0]
    assert all(mlir.make_ir_context() is not context for context in found)
