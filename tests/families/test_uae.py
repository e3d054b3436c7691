"""UAE: it reads as Qwen2.5-VL does, and draws from the words alone, in training as in sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.build import sequence_config
from data_pipelines.segments import DRAWN, UNDERSTOOD, Image, Text
from data_pipelines.sequences.document import drawing_slots
from data_pipelines.sequences.sequence import VISION_START, build_prefix
from tests.data.samples import picture, tokenizer
from tests.families.documents import documents, lively, pack
from tests.models.torch_weights import assert_close
from tests.tiny import UAE, tiny_config
from unicom_jax.config.check import check_settings
from unicom_jax.config.key import ConfigError
from unicom_jax.core.batch import Role
from unicom_jax.families.build import build_unified
from unicom_jax.families.images import Noised
from unicom_jax.families.uae import UaeImages, Words
from unicom_jax.models.qwen_vl import QwenVL

SIDE, FOLD = 4, 2  # tokens along a picture, and along a slot


def configured(**overrides):
    return tiny_config(**{**UAE, "data__vocab_size": tokenizer().vocab_size, **overrides})


CONFIG = configured()
MODEL = build_unified(CONFIG)
PARAMS = lively(MODEL, scale=0.2)
SEQUENCE = sequence_config(CONFIG)
FROZEN = {"autoencoder": lively(MODEL.images.codec, scale=0.2)}
prepare = jax.jit(MODEL.images.prepare)


def test_a_picture_and_a_question_are_read_as_by_qwen_vl():
    asked = [Image(picture(0, 32, 32), UNDERSTOOD), Text("how many red dots?")]
    prefix = build_prefix(asked, tokenizer(), SEQUENCE)
    batch = pack([prefix, prefix], [[0]], SEQUENCE)
    found = jax.jit(MODEL.read)(PARAMS, batch, prepare(FROZEN, batch))

    spare = tokenizer().vocab_size - 1  # stands for a slot of a picture
    reader = QwenVL(MODEL.images.vision, MODEL.transformer, picture_token=spare)
    assert spare not in batch.tokens
    tokens = np.where(batch.roles == Role.UNDERSTAND, spare, batch.tokens)
    patches = MODEL.images.vision.prepare(batch.patches[0], batch.grids[0])
    seen = reader.look(PARAMS, patches[None], batch.grids)
    lengths = np.array([len(prefix)])
    expected, _ = reader(PARAMS, tokens, lengths, seen, batch.grids)
    assert_close(found[0, : len(prefix)], expected[0, : len(prefix)], 1e-5)
    assert reader.next_positions(tokens, lengths, batch.grids) == prefix.next_position


# ---- what reaches the drawer --------------------------------------------------------------

WORDS = ["a red dot", "two large blue squares on grey ground"]


@pytest.fixture
def conditions(monkeypatch):
    """The context tokens, of real words only, that the loss of packed documents draws from."""
    held = []

    def kept(self, params, condition, noised, aux):
        held.append(condition)
        return {"flow": (jnp.float32(0), 1.0)}

    monkeypatch.setattr(UaeImages, "loss_terms", kept)

    def of(made, rows):
        batch = pack(made, rows, SEQUENCE)
        keys = jax.random.split(jax.random.key(0), len(rows))
        MODEL.loss_terms(PARAMS, batch, prepare(FROZEN, batch), keys)
        tokens, lengths = (np.asarray(x)[:, 0] for x in (held[-1].tokens, held[-1].lengths))
        real = np.arange(tokens.shape[1]) < lengths[:, None]
        return np.where(real[..., None], tokens, 0.0), lengths

    return of


def drawings(seed: int):
    return documents(
        [[Text(words), Image(picture(seed + i, 32, 32), DRAWN)] for i, words in enumerate(WORDS)],
        SEQUENCE,
    )


def test_no_hidden_state_that_saw_the_drawn_picture_reaches_the_drawer(conditions):
    (one, lengths), (other, _) = (conditions(drawings(seed), [[0, 1]]) for seed in (0, 5))
    np.testing.assert_array_equal(one, other)
    assert np.all(lengths > 5) and np.all(np.any(one[:, 0], axis=-1))


def test_packed_words_give_the_context_that_they_give_when_sampled(conditions):
    packed, lengths = conditions(drawings(0), [[0, 1]])
    prefixes = [build_prefix([Text(words)], tokenizer(), SEQUENCE, VISION_START) for words in WORDS]
    side = SIDE // FOLD
    for number, prefix in enumerate(prefixes):
        assert lengths[number] == len(prefix)
        batch = pack([prefix, prefix], [[0]], SEQUENCE)
        cache = MODEL.init_cache(1, len(prefix) + side**2)
        _, cache = MODEL.prefill(PARAMS, batch, None, cache)
        slots = drawing_slots(len(prefix), prefix.next_position, side, side, kind="mrope")
        context = MODEL.begin_drawing(
            PARAMS, cache, slots.positions[None], jax.tree.map(lambda x: x[None], slots.mask),
            np.array([[SIDE, SIDE]]), len(prefix),
        )  # fmt: skip
        assert context.condition.lengths == len(prefix)
        assert_close(
            context.condition.tokens[0, 0, : len(prefix)],
            packed[number, : len(prefix)],
            1e-5,
        )
        shape = 1, SIDE**2, MODEL.images.codec.latent_dim
        noisy = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        speed = MODEL.velocity(PARAMS, context, noisy, np.array([0.3]))
        assert speed.shape == noisy.shape and np.all(np.isfinite(speed))


def test_compiled_programs_name_the_drawers_work():
    """`unicom plan` divides a step's time by these names."""
    images = MODEL.images
    words = jnp.zeros((1, 1, 3, images.decoder.transformer.context_dim))
    latents = jnp.zeros((1, 1, SIDE**2, images.codec.latent_dim))
    noised = Noised(latents, jnp.zeros((1, 1)), jnp.array([[[SIDE, SIDE]]]))

    @jax.jit
    def speed(params):
        return images.velocity(params, Words(words, jnp.array([[3]])), noised, None)

    assert "module.flow_decoder" in speed.lower(PARAMS).as_text(debug_info=True)


# ---- what is trained ----------------------------------------------------------------------


def test_drawing_stages_hold_the_reader_and_others_the_drawer():
    assert MODEL.frozen(draws=True) == (
        "vision/.*",
        "transformer/.*",
        "decoder/transformer/positions",
    )
    assert MODEL.frozen(draws=False) == ("vision/.*", "decoder/.*")


def test_a_picture_is_scaled_as_a_whole_to_the_patches_of_the_tower():
    changed = configured(
        unified__uae__vision__patch_size=14, unified__uae__vision__window_size=28, data__patch=16,
        data__image_size=64,
    )  # fmt: skip
    images = build_unified(changed).images
    # Brightness rises from row to row: so it does after scaling, without a seam between patches.
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None, None], (64, 64, 3)) * 3
    patches = ramp.reshape(4, 16, 4, 16, 3).swapaxes(1, 2).reshape(1, 16, -1).astype(np.uint8)
    scaled = np.asarray(images._resized(patches), np.float32).reshape(4, 4, 14, 14, 3)
    rows = scaled.swapaxes(1, 2).reshape(56, 56, 3)
    np.testing.assert_allclose(np.diff(rows[4:-4], axis=0), 3 * 64 / 56, atol=1.0)


# ---- what does not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__policy": "bucket", "encoder__naflex": True, "autoencoder__canvas": (4, 4)},
            "pictures of one size; set data.policy=fixed",
        ),
        ({"unified__prediction": "data"}, "predicts velocities; set it to velocity"),
        ({"unified__image_positions": "grid"}, "unified.pathway=uae; set it to mrope"),
        ({"unified__transformer__rope_sections": ()}, "give three sections for mrope"),
        (
            {"unified__uae__decoder__position_side": 3},
            "unified.uae.decoder.position_side=3, but a picture may be 4 tokens long",
        ),
        ({"unified__pathway": "transfusion", "unified__fold": 1}, "set it to grid or plain"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_the_fix(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        build_unified(configured(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unified__understanding": "latents"}, "read in one way; set it to features"),
        ({"unified__prediction": "data"}, "predicts velocities; set it to velocity"),
        ({"unified__image_positions": "plain"}, "a Qwen2.5-VL; set it to mrope"),
        ({"data__policy": "bucket", "encoder__naflex": True}, "of one size; set it to fixed"),
        ({"unified__edit_source": "both"}, "pathway=uae; set it to latents"),
        (
            {"unified__pathway": "query", "unified__uae__decoder__init_from": "sd3"},
            "does nothing with unified.pathway=query",
        ),
        (
            {"codec__decoder__init_from": "sd3"},
            "pathway=uae; leave it out, or set unified.pathway to transfusion or query",
        ),
        ({"unified__uae__vision__heads": 3}, "does not divide .* into multiples of 4; take one of"),
    ],
)
def test_settings_that_it_would_ignore_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(configured(stages=("longcap",), **changes), ("longcap",))
