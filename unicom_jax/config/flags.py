"""Types of command-line flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def number(kind: type, least: float, most: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: a number within bounds."""

    def parse(text: str) -> float:
        value = kind(text)
        if not least <= value <= most or value == float("inf"):
            bounds = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; give a number {bounds}")
        return value

    parse.__name__ = "number" if kind is float else "whole number"  # argparse names it in errors
    return parse
