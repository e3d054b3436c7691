"""What generation takes: its own two programs, compiled for one device."""

from __future__ import annotations

import jax
import pytest

from tests.planning.test_plan import text_of
from tests.tiny import tiny_config
from unicom_jax.inference.engine import DRAWING, PAINTING, READING, WRITING
from unicom_jax.parallel.plan.roofline import Part, Roofline
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning.sampling import OUTSIDE, WORDS, SamplePlan, plan_sampling, seen_slots
from unicom_jax.planning.table import sample_table
from unicom_jax.runs import weights


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def plans(kept):
    config = tiny_config(sample__steps=7, sample__max_tokens=9)
    return plan_sampling(config, parse_topology("cpu:1"), kept)


def test_the_compiled_programs_are_kept_where_that_is_asked_for(plans, kept):
    parts = ("draw-drawing", "draw-painting", "draw-reading", "write-reading", "write-writing")
    assert sorted(path.name for path in kept.iterdir()) == [f"sample-{name}.hlo" for name in parts]


@pytest.mark.parametrize(
    ("understanding", "slots"),
    [("features", 16), ("channel_concat", 16), ("latents", 4), ("sequence_concat", 20)],
)
def test_a_picture_fills_the_slots_of_what_is_understood(understanding, slots):
    assert seen_slots(understanding, patches=16, pool=2) == slots
    assert seen_slots(understanding, patches=64, pool=2, fold=2) == slots  # four to a slot


def test_a_device_holds_all_weights_of_a_generator(plans):
    held = jax.tree.leaves(jax.eval_shape(lambda: weights.untrained(tiny_config(), 0)))
    assert {plan.weights for plan in plans} == {sum(x.size * 4 for x in held)}
    assert all(plan.peak > plan.weights and plan.fits for plan in plans)


def test_the_cache_has_room_for_what_is_read_and_what_is_made(plans):
    slot = 2 * 2 * 1 * 16 * 4  # keys and values, layers, heads, channels, bytes
    draw, write = plans
    assert draw.cache == 2 * (WORDS + 4) * slot  # with and without the words, four tokens each
    assert write.cache == 256 * slot  # picture and question take 68 slots of 128, the answer 9


def test_every_loop_belongs_to_the_part_that_turns_it(plans):
    draw, write = plans
    assert set(draw.parts) == {READING, DRAWING, PAINTING, OUTSIDE}
    assert set(write.parts) == {READING, WRITING, OUTSIDE}
    assert [part.times for part in draw.parts[OUTSIDE].parts] == [1, 1, 1]  # one of each program
    for plan, part, turns in ((draw, DRAWING, 7), (draw, PAINTING, 2), (write, WRITING, 9)):
        assert plan.turns[part] == turns
        assert {one.times % turns for one in plan.parts[part].parts} == {0}


def test_the_table_gives_the_time_of_a_part_and_of_its_turns():
    loop = Roofline((Part("drawing", 50, (2.0, 3.0, 0.0, 0.0)),), ())
    plan = SamplePlan(
        "draw", "a picture", parse_topology("h100:8"), "compiled", 2**30, 2**29, 2**31,
        {"drawing": 50}, {"drawing": loop},
    )  # fmt: skip
    text = text_of(sample_table([plan]))
    assert "sampling, on one device of h100:8 (compiled)" in text
    assert "3 s - 5 s" in text and "50 times 60 ms - 100 ms" in text and "memory 100%" in text
