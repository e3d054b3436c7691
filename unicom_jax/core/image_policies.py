"""Names of the policies under which pictures are resized; `data_pipelines.images` applies them.

They stand here because the configuration lists them, which imports no data pipelines.
"""

from __future__ import annotations

SQUARE = ("fixed", "crop", "pad")  # all pictures have one size
POLICIES = (*SQUARE, "naflex", "bucket", "bucket_walk")
