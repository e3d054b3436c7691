"""How an entry of `unified.tuned_at` is read."""

from __future__ import annotations

import pytest

from unicom_jax.core.sizes import named_size


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("transformer.width=64", ("transformer.width", 64)),
        ("transformer.width", ("transformer.width", 0)),
        ("transformer.width=-64", ("transformer.width", 0)),
        ("transformer.width=6.4", ("transformer.width", 0)),
        ("transformer.width=64=64", ("transformer.width", 0)),
        ("", ("", 0)),
    ],
)
def test_an_entry_is_a_name_and_a_size_which_is_0_where_it_is_no_number_above_0(entry, found):
    assert named_size(entry) == found
