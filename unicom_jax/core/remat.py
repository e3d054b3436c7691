"""What a scanned block keeps for the backward pass, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax

# Inside `jax.lax.scan` XLA cannot merge the second computation with the first, so the barrier that
# `prevent_cse` would set only costs time.
_checkpoint = partial(jax.checkpoint, prevent_cse=False)

# Everything / the outputs of products with weights / only the block's input.
REMAT_POLICIES: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda block: block,
    "dots": partial(_checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    "full": partial(_checkpoint, policy=jax.checkpoint_policies.nothing_saveable),
}
