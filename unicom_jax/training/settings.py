"""What a mesh asks of a stage's settings; all other checks are in `config.check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unicom_jax.config import ConfigError


def check_on_mesh(stage: str, settings: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Looks at what a mesh of these sizes asks of a stage.

    Raises:
      ConfigError: its rows do not divide over the mesh's `context` axis.
    """
    slots, parts = settings.get("sequence_length", 0), sizes["context"]
    if slots % parts:
        raise ConfigError(
            f"{stage}.sequence_length={slots} does not divide over context={parts} of the mesh; "
            "make it a multiple, or give the devices to another axis"
        )
