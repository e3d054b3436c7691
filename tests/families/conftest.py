"""What the tests of several families ask for."""

from __future__ import annotations

import pytest

from tests.families.documents import give_noise


@pytest.fixture(scope="module")
def noise_is_given():
    """Noise belongs to a row's place in the batch; to compare batches the tests hand it in."""
    with pytest.MonkeyPatch.context() as patch:
        give_noise(patch)
        yield
