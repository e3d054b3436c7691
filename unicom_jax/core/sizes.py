"""How an entry of `unified.tuned_at` is read, for its check and for building the smaller model."""

from __future__ import annotations


def named_size(entry: str) -> tuple[str, int]:
    """("transformer.width", 64) of "transformer.width=64"; the size is 0 where the entry has none
    that is a number above 0."""
    name, _, size = entry.partition("=")
    return name, int(size) if size.isdecimal() else 0
