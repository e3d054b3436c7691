"""What a scanned block keeps for the backward pass, by name, and where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# Inside `jax.lax.scan` XLA cannot merge the recomputation with the first computation, so the
# barrier that `prevent_cse` would add only costs time.
_checkpoint = partial(jax.checkpoint, prevent_cse=False)

_RESIDUAL = "residual_stream"
_to_host = partial(
    _checkpoint,
    policy=jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_RESIDUAL],
        offload_src="device",
        offload_dst="pinned_host",
    ),
)


def _offloaded(block: Callable) -> Callable:
    """Keeps the block's input, which the scan carries, in host memory."""

    def named(carry: Any, *inputs: Any) -> Any:
        return block(checkpoint_name(carry, _RESIDUAL), *inputs)

    return _to_host(named)


# Attention's output and log-sum-exp (`core.attention.online`): small, but costly to recompute.
ATTENDED = "attended"
_products = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(ATTENDED),
)

# Kept: everything / the outputs of products with weights, and of attention if it never holds all
# scores / only the block's input / the block's input, in host memory.
REMAT_POLICIES: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda block: block,
    "dots": partial(_checkpoint, policy=_products),
    "full": partial(_checkpoint, policy=jax.checkpoint_policies.nothing_saveable),
    "offload": _offloaded,
}


def check_remat(name: str) -> None:
    """Raises a ValueError if there is no policy of this name."""
    if name not in REMAT_POLICIES:
        raise ValueError(f"unknown remat {name!r}; use one of {', '.join(REMAT_POLICIES)}")
