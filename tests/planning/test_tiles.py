"""Which shards are whole tiles of a TPU, and what the planner does about those that are not."""

from __future__ import annotations

import pytest
from jax.sharding import AbstractMesh

from tests.tiny import tiny_config
from unicom_jax.core.module import ParamSpec
from unicom_jax.parallel.mesh import AXES
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning.estimate import estimate_stage
from unicom_jax.planning.search import search
from unicom_jax.planning.tiles import is_broken, shard_of, tile_warning

WIDE = ParamSpec((28, 3584, 18_944), ("layers", "embed", "mlp"))
NORM = ParamSpec((28, 3584), ("layers", None))


def mesh(fsdp: int, context: int = 1) -> AbstractMesh:
    return AbstractMesh((1, 1, fsdp, context, 1), AXES)


@pytest.mark.parametrize(
    ("fsdp", "context", "part", "nbytes", "breaks"),
    [
        (64, 1, 56, 2, True),
        (64, 1, 56, 4, False),  # a tile of fp32 has eight rows
        (32, 1, 112, 2, False),
        (16, 4, 56, 2, True),
        (256, 1, 14, 4, True),
        (1, 1, 0, 2, False),
    ],
)
def test_a_shard_is_held_against_the_rows_of_a_tile(fsdp, context, part, nbytes, breaks):
    assert shard_of(WIDE, mesh(fsdp, context))[1] == part
    assert is_broken(WIDE, mesh(fsdp, context), nbytes) == breaks
    assert not is_broken(NORM, mesh(fsdp, context), nbytes)


def test_the_warning_names_a_size_that_fits():
    line = tile_warning([NORM, WIDE], mesh(64), 2)
    assert "3584 channels over 64 devices are in shards of 56 rows" in line
    assert line.endswith("over 32 devices they would have 112")
    assert tile_warning([NORM, WIDE], mesh(32), 2) == ""
    few = ParamSpec((1152, 3584), ("embed", None))  # in shards of 36 rows
    assert is_broken(few, mesh(32), 2) and tile_warning([few, WIDE], mesh(32), 2) == ""


def config(**overrides):
    """Weights of 64 channels: over 8 devices 8 rows, over 4 devices 16."""
    small = tiny_config(compute_dtype="bfloat16", pretrain__batch_size=16, **overrides)
    small.unified.transformer.width = 64
    return small


def kinds(topology: str, mesh: str) -> set[str]:
    plan = estimate_stage(config(mesh=mesh), "pretrain", parse_topology(topology))
    assert bool(plan.warnings) == (mesh == "fsdp=8")
    heavy = max(one.near + one.far for one in plan.roofline.exchanges)
    return {
        one.kind
        for one in plan.roofline.exchanges
        if one.axes == ("fsdp",) and one.near + one.far > heavy / 3
    }


def test_an_estimate_for_a_tpu_all_reduces_gradients_in_broken_tiles():
    assert kinds("v5e:2x4", "fsdp=8") == {"all-gather", "all-reduce"}
    assert kinds("v5e:2x4", "data=2,fsdp=4") == {"all-gather", "reduce-scatter"}


def test_a_search_prefers_whole_tiles_where_nothing_else_differs():
    same = (("unified.transformer.remat", "none"), ("pretrain.batch_size", 128))
    settings = [(("mesh", line), *same) for line in ("fsdp=-1", "data=-1,fsdp=32")]
    wide = config()
    wide.unified.transformer.width = 512  # over 64 devices 8 rows, over 32 devices 16
    found = search(wide, "pretrain", parse_topology("v5e:8x8"), 0, settings=settings)
    assert dict(found[0].values)["mesh"] == "data=-1,fsdp=32"
