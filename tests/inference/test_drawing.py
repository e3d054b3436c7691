"""Pictures: drawn behind a cached prefix as if everything were run at every step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.sequences.sequence import VISION_START, build_prefix
from data_pipelines.sequences.tasks import SOURCE, Text, unconditional_segments
from tests.families.documents import LATENTS, TOKENS, image
from tests.inference import full_pass
from unicom_jax.core.flow import guide, integrate
from unicom_jax.inference import conversations, engine
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.prompt import collate, image_slots

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
        Drawing(steps=3, guidance=3.0, sampler="heun", interval=(0.0, 0.5)),
    ],
    ids=["conditional", "guided"],
)
def test_the_cached_prefix_draws_what_a_full_pass_at_every_step_draws(generator, noise, settings):
    conditional, unconditional = both_branches(generator)
    documents = conditional + unconditional[: 2 * (settings.branches - 1)]
    prefixes = collate(documents, generator.sequence)
    slots = image_slots(prefixes, 2, 2)
    painted = engine.paint(
        generator.models, generator.params, prefixes.batch, slots.positions, slots.mask, GRIDS,
        *noise, pool=1, settings=settings, codec_steps=2,
    )  # fmt: skip

    velocity = full_pass.velocity(generator, documents, 2, 2)

    def guided(latents, time):
        if settings.guidance == 1.0:
            return velocity(latents, time)
        c, u = jnp.split(velocity(jnp.concatenate([latents, latents]), time), 2)
        return guide(c, u, settings.guidance, time, settings.interval)

    @jax.jit
    def expected(latent_noise, pixel_noise):
        drawn = integrate(guided, latent_noise, settings.steps, settings.sampler, settings.shift)
        return generator.models.codec.decode(
            generator.params["codec"], drawn, GRIDS, pixel_noise, 2
        )

    np.testing.assert_allclose(painted, expected(*noise), atol=1e-4, rtol=1e-4)


def test_guidance_of_one_needs_no_unconditional_branch(generator, monkeypatch):
    def never(segments):
        raise AssertionError("an unconditional prefix was built")

    monkeypatch.setattr(conversations, "unconditional_segments", never)
    assert generator.draw(["a red dot"], guidance=1.0, steps=2)[0].image.shape == (32, 32, 3)
    with pytest.raises(AssertionError, match="unconditional"):
        generator.draw(["a red dot"], guidance=2.0, steps=2)


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
        ({"interval": (0.8, 0.2)}, "guidance_interval .* is none; give two flow times"),
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
