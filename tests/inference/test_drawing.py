"""Pictures: drawn behind a cached prefix as if everything were run at every step."""

from __future__ import annotations

import copy
import dataclasses

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.segments import DRAWN, SOURCE, Image, Text
from data_pipelines.sequences.sequence import VISION_START, build_document, build_prefix
from data_pipelines.sequences.tasks import unconditional_segments
from tests.data.samples import picture
from tests.families.documents import LATENTS, TOKENS, image
from tests.inference import full_pass
from unicom_jax.core.batch import MaskIntervals, Role
from unicom_jax.core.flow import guide, integrate
from unicom_jax.core.module import Module
from unicom_jax.inference import conversations, engine
from unicom_jax.inference.drawing import Drawing, draw_latents
from unicom_jax.inference.guidance import WORDLESS
from unicom_jax.inference.prompt import collate, image_slots
from unicom_jax.models.transformer import KVCache

CONVERSATIONS = (
    [Text("a red dot")],
    [image(3, SOURCE), Text("paint it green. think of a large blue square first")],
)
GRIDS = np.full((2, 2), 2, np.int32)


@pytest.fixture(scope="module")
def noise():
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((2, TOKENS, LATENTS), np.float32),
        rng.standard_normal((2, TOKENS, 768), np.float32),
    )


def prefixes_of(generator, conversations):
    return [
        build_prefix(c, generator.tokenizer, generator.sequence, VISION_START)
        for c in conversations
    ]


def both_branches(generator):
    silent = [unconditional_segments(c) for c in CONVERSATIONS]
    return prefixes_of(generator, CONVERSATIONS), prefixes_of(generator, silent)


@pytest.mark.parametrize(
    "settings",
    [
        Drawing(steps=3, guidance=1.0, sampler="euler", shift=2.0),
        Drawing(steps=3, guidance=3.0, sampler="heun", guidance_interval=(0.0, 0.5)),
        Drawing(steps=3, guidance=3.0, shift=0.5),
    ],
    ids=["conditional", "gated", "guided"],
)
def test_the_cached_prefix_draws_what_a_full_pass_at_every_step_draws(generator, noise, settings):
    conditional, unconditional = both_branches(generator)
    guidance = len(settings.branches) > 1
    documents = conditional + unconditional if guidance else conditional
    beside = [one for pair in zip(conditional, unconditional, strict=True) for one in pair]
    prefixes = collate(
        beside if guidance else conditional, generator.sequence, len(settings.branches)
    )
    models, params, start = generator.models, generator.params, np.int32(prefixes.slots)
    ends = prefixes.lengths, prefixes.next_positions
    slots = image_slots(*ends, GRIDS, TOKENS, prefixes.slots, "grid")
    _, cache = engine.read(
        models, params, prefixes.batch, prefixes.patches, prefixes.lengths - 1,
        models.new_cache(len(documents), prefixes.slots + TOKENS), np.int32(0),
    )  # fmt: skip
    latents = engine.draw(
        models, params, cache, slots.positions, slots.mask, GRIDS, noise[0], start,
        settings.numbers, plan=settings.plan,
    )  # fmt: skip
    painted = engine.paint(models, params, latents, GRIDS, noise[1], steps=2)

    velocity = full_pass.velocity(generator, documents, 2, 2)

    def guided(latents, time):
        if settings.guidance == 1.0:
            return velocity(latents, time)
        c, u = jnp.split(velocity(jnp.concatenate([latents, latents]), time), 2)
        return guide(c, u, settings.guidance, time, settings.guidance_interval)

    @jax.jit
    def expected(latent_noise, pixel_noise):
        shift = settings.shift or 1.0
        drawn = integrate(guided, latent_noise, settings.steps, settings.sampler, shift)
        return generator.models.codec.decode(
            generator.params["codec"], drawn, GRIDS, pixel_noise, 2
        )

    np.testing.assert_allclose(painted, expected(*noise), atol=1e-4, rtol=1e-4)


def test_guidance_of_one_needs_no_unconditional_branch(generator, monkeypatch):
    def never(*_):
        raise AssertionError("an unconditional prefix was built")

    monkeypatch.setitem(conversations.PREFIXES, WORDLESS, never)
    assert generator.draw(["a red dot"], guidance=1.0, steps=2)[0].image.shape == (32, 32, 3)
    with pytest.raises(AssertionError, match="unconditional"):
        generator.draw(["a red dot"], guidance=2.0, steps=2)


def test_numbers_are_arguments_of_a_program_and_not_part_of_it(generator):
    """Five scales, three intervals within time, two shifts: two programs, gated and always."""
    before = engine.draw._cache_size()
    settings = [{"guidance": scale} for scale in (1.5, 2.0, 3.0, 4.0, 7.5)]
    settings += [{"guidance_interval": interval} for interval in ((0, 0.4), (0.1, 1.0), (0.2, 0.3))]
    settings += [{"shift": shift, "seed": 9} for shift in (0.5, 2.0)]
    drawn = [generator.draw("a red dot", steps=2, **each)[0].image for each in settings]
    assert engine.draw._cache_size() - before <= 2
    assert len({image.tobytes() for image in drawn}) == len(drawn)  # none is ignored


@pytest.mark.parametrize("kind", ["grid", "plain"])
def test_a_picture_is_drawn_at_the_positions_of_training(generator, kind, monkeypatch):
    class Seen(Exception):
        pass

    def draw(models, params, cache, positions, *rest, **options):
        raise Seen(positions)

    model = copy.copy(generator)
    model.sequence = dataclasses.replace(generator.sequence, image_positions=kind)
    said = [Text("a red dot"), Image(np.zeros((32, 32, 3), np.uint8), DRAWN)]
    trained = build_document(said, model.tokenizer, model.sequence)
    monkeypatch.setattr(conversations.engine, "draw", draw)
    with pytest.raises(Seen) as seen:
        model.paint(said[:1], guidance=1.0, steps=2)
    positions = trained.positions[trained.roles == Role.NOISY]
    np.testing.assert_array_equal(seen.value.args[0][0, : len(positions)], positions)


def test_outside_the_interval_only_the_conditional_branch_is_computed(generator):
    """Every step is a `cond`: outside the layers see one row, inside two."""
    settings = Drawing(steps=2, guidance=3.0, guidance_interval=(0.0, 0.4))
    prefixes = collate(both_branches(generator)[0], generator.sequence, 2)
    slots = image_slots(
        prefixes.lengths, prefixes.next_positions, GRIDS[:1], TOKENS, prefixes.slots, "grid"
    )
    arguments = (
        generator.models.new_cache(2, prefixes.slots + TOKENS), slots.positions, slots.mask,
        GRIDS[:1], np.zeros((1, TOKENS, LATENTS), np.float32), np.int32(prefixes.slots),
        settings.numbers,
    )  # fmt: skip
    traced = engine.draw.trace(
        generator.models, generator.params, *arguments, plan=settings.plan
    ).jaxpr
    (cond,) = [e for e in equations(traced.jaxpr) if e.primitive.name == "cond"]
    outside, inside = (rows_of_layers(branch.jaxpr) for branch in cond.params["branches"])
    assert outside == {1} and inside == {2}


def equations(jaxpr):
    """All equations, but those within the branches of a `cond`."""
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "cond":
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from equations(inner)


def rows_of_layers(jaxpr) -> set[int]:
    """Rows of the hidden states that the scans over layers carry, which are their first results."""
    scans = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    return {e.outvars[0].aval.shape[0] for e in scans}


# ---- edits that begin with their source ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OfTime(Module):
    """A model whose velocity is the time it is printed, and `ended` at t = 1."""

    ended: float = np.nan

    def begin_drawing(self, params, cache, positions, mask, grids, start):
        return None

    def velocity(self, params, context, noisy, time):
        time = jnp.where(time < 1.0, time, self.ended)
        return jnp.broadcast_to(time[:, None, None], noisy.shape)


def begun(noise, source, ended=np.nan, **options):
    """What an edit gives with that velocity."""
    settings, empty = Drawing(guidance=1.0, **options), np.zeros((2, TOKENS), np.int32)
    nothing = jnp.zeros((1, 2, 1, 1, 2))
    return draw_latents(
        OfTime(ended), {}, KVCache(nothing, nothing), np.zeros((2, TOKENS, 2), np.int32),
        MaskIntervals(*(4 * [empty])), GRIDS, noise, np.int32(0), settings.numbers, settings.plan,
        source,
    )  # fmt: skip


@pytest.mark.parametrize(("shift", "alpha"), [(2.0, 0.5), (1.0, 1.0)])
def test_an_edit_is_mixed_at_the_time_that_the_model_reads_and_none_is_1(noise, shift, alpha):
    source, noise = noise[0][::-1], noise[0]
    times = np.linspace(0.1, 1.0, 5)
    times = alpha * times / (1 + (alpha - 1) * times)  # as the paper writes it
    expected = times[0] * source + (1 - times[0]) * noise + np.sum(np.diff(times) * times[:-1])
    found = begun(noise, source, steps=4, shift=shift, edit_start=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_released_rule_mixes_before_the_shift_and_asks_for_a_velocity_at_1(noise):
    source, noise = noise[0][::-1], noise[0]
    options = {"steps": 10, "shift": 2.0, "edit_start": 0.1, "grid": "released"}
    assert np.isnan(begun(noise, source, **options)).all()  # there is none

    times = np.linspace(0.1, 1.0, 9)
    times = np.append(0.5 * times / (1 - 0.5 * times), 1 + 1 / 9)
    expected = 0.1 * source + 0.9 * noise + np.sum(np.diff(times) * times[:-1])
    found = begun(noise, source, ended=1.0, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_edit_that_begins_at_the_end_is_its_source(generator):
    pictures = [picture(seed, 32, 32) for seed in range(3)]
    copies = generator.reconstruct(pictures, seed=4)
    kept = generator.edit(pictures, "paint it green", edit_start=0.999, steps=1, seed=4)
    anew = generator.edit(pictures, "paint it green", steps=1, seed=4)
    for copy_of, one, other in zip(copies, kept, anew, strict=True):
        assert np.abs(one.astype(int) - copy_of).max() <= 3
        assert np.abs(other.astype(int) - copy_of).max() > 30


def test_only_a_picture_to_edit_is_begun_with(generator, monkeypatch):
    plans = []

    def draw(models, *arguments, plan):
        plans.append((plan.start, arguments[-1] is not None))
        return arguments[-4]  # the noise

    monkeypatch.setattr(conversations.engine, "draw", draw)
    shown = Image(picture(1, 32, 32))
    to_edit = Image(picture(2, 32, 32), SOURCE)
    options = {"steps": 2, "guidance": 1.0, "edit_start": 0.25}
    for said in ([Text("a dot")], [shown, Text("a dot like it")], [to_edit, shown, Text("a dot")]):
        generator.paint(said, **options)
    assert plans == 3 * [(0.0, False)]
    generator.paint([shown, to_edit, Text("paint it green")], **options)
    generator.session().respond([to_edit, Text("green")], max_tokens=1, **options)
    assert plans[3:] and set(plans[3:]) == {(0.25, True)}


def test_a_picture_of_another_size_cannot_begin_with_the_source(generator):
    model = copy.copy(generator)
    said = [Image(picture(2, 32, 32), SOURCE), Text("paint it green")]
    with pytest.raises(ValueError, match=r"edit_start=0.5 begins .* \(32, 32\) .* \(16, 32\)"):
        model.suited(model.drawing(edit_start=0.5), said, (1, 2))
    assert model.suited(model.drawing(), said, (1, 2)).edit_start == 0.0


def test_the_grid_of_cheers_is_refused_by_a_model_without_a_velocity_at_1(generator):
    with pytest.raises(ValueError, match="grid 'released' needs the velocity at t = 1"):
        generator.draw("a red dot", grid="released")


def test_outside_its_interval_guidance_does_nothing(generator):
    def drawn(**options):
        return generator.draw(["a red dot"], steps=2, **options)[0].image.astype(int)

    alone = drawn(guidance=1.0)
    late = drawn(guidance=5.0, guidance_interval=(0.9, 1.0))  # the steps begin at 0 and .5
    assert np.abs(late - alone).max() <= 1
    assert np.abs(drawn(guidance=5.0, guidance_interval=(0.0, 0.4)) - alone).max() > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "huen"}, "sampler 'huen' is unknown; choose one of euler, heun"),
        ({"steps": 0}, "needs at least 1"),
        (
            {"guidance_interval": (0.8, 0.2)},
            "guidance_interval .* is not an interval; give two flow",
        ),
        ({"renorm": "globe"}, "renorm 'globe' is unknown; choose one of none, picture"),
        ({"shift": 0.0}, "give a number above 0"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"guidance": float("nan")}, "guidance is nan; give a finite number"),
        ({"image_guidance": float("inf")}, "image_guidance is inf; give a finite number"),
        ({"codec_steps": 0}, "codec_steps is 0"),
        ({"renorm_min": 2.0}, "renorm_min is 2.0"),
        ({"edit_start": 1.0}, "edit_start is 1.0"),
        ({"grid": "odd"}, "grid 'odd' is unknown; choose one of even, released"),
        ({"grid": "released", "steps": 1}, "the released grid needs 2 nodes"),
    ],
)
def test_a_drawing_that_cannot_be_is_refused_before_anything_is_compiled(settings, message):
    with pytest.raises(ValueError, match=message):
        Drawing(**settings)


def test_the_unconditional_branch_keeps_the_picture_and_drops_the_words(generator):
    conditional, unconditional = both_branches(generator)
    assert [len(document.grids) for document in unconditional] == [0, 1]
    np.testing.assert_array_equal(unconditional[1].patches[0], conditional[1].patches[0])
    spelt = [generator.tokenizer.decode(document.tokens) for document in unconditional]
    assert not any(word in text for text in spelt for word in ("red", "green", "square"))
