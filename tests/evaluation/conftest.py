"""Every suite that a test of this folder runs makes declared scores alone: those by which
`unicom sweep` tells before the training whether a variant can have a score."""

from __future__ import annotations

import pytest

from unicom_jax.evaluation.run import suite_of
from unicom_jax.evaluation.suite import SuiteResult


@pytest.fixture(autouse=True, scope="package")
def declared():
    made, real = set(), SuiteResult.__init__

    def init(self, scores, records):
        undeclared = [score.name for score in scores if suite_of(score.name) is None]
        assert not undeclared, f"no suite of evaluation.run.SUITES declares {undeclared}"
        made.update(suite_of(score.name) for score in scores)
        real(self, scores, records)

    SuiteResult.__init__ = init
    yield made
    SuiteResult.__init__ = real
