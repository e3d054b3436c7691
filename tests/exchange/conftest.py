"""One exported run for all tests that only look at it."""

from __future__ import annotations

import pytest

from tests.runs.workdirs import write_run
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A workdir of the default kind, with averaged weights and raw ones beside them."""
    place = tmp_path_factory.mktemp("runs")
    # A head of its own: a random tied one repeats the last token for ever.
    return write_run(place / "tiny", averaged=True, unified__transformer__tied_head=False)


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    return export(run, tmp_path_factory.mktemp("exports") / "tiny", Options(shard_bytes=100_000))
