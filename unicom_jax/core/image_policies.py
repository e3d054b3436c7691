"""The policies under which pictures are resized; `data_pipelines.images` says what each does."""

from __future__ import annotations

SQUARE = ("fixed", "crop", "pad")  # all pictures have one size
POLICIES = (*SQUARE, "naflex", "bucket", "bucket_walk")
