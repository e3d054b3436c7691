"""Segments of conversations in an export's own types.

transformers loads the code of a folder as modules of their own.
"""

from __future__ import annotations

import sys

from data_pipelines.segments import Segment, Text


def theirs(model, segment: Segment):
    """The segment as the loaded `model` takes it."""
    code = sys.modules[type(model.processor).__module__]
    if isinstance(segment, Text):
        return code.Words(segment.text, segment.supervised)
    return code.Image(segment.pixels, segment.role)
