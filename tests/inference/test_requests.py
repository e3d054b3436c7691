"""One thing or a list of them, and what is written and drawn at which place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines.segments import UNDERSTOOD, Image, Text
from tests.data.samples import picture
from unicom_jax.inference.arrays import LATENTS, PIXELS, derived_seed, in_batches, noise_at
from unicom_jax.inference.requests import as_conversations, as_pictures, as_texts, paired

ONE, OTHER = picture(0, 32, 32), picture(1, 32, 32)


def test_one_string_is_one_text():
    assert as_texts("a red circle") == ["a red circle"]
    assert as_texts(["a", "b"]) == ["a", "b"]
    with pytest.raises(ValueError, match="prompt 1 is a int; give a string"):
        as_texts(["a", 3])


def test_one_array_is_one_picture():
    assert len(as_pictures(ONE)) == 1
    assert len(as_pictures(np.stack([ONE, OTHER]))) == 2
    with pytest.raises(
        ValueError, match="picture 0 must be a Pillow image or an array .* not float64"
    ):
        as_pictures([ONE / 255.0])
    with pytest.raises(ValueError, match="picture 1 must be a Pillow image or an array"):
        as_pictures([ONE, "file.png"])
    with pytest.raises(ValueError, match=r"picture 0 .* not uint8 \(32, 32\)"):
        as_pictures(ONE[..., 0])
    for wrong in ("file.png", Path("file.png"), None):
        with pytest.raises(ValueError, match="picture 0 must be a Pillow image or an array"):
            as_pictures(wrong)


def test_a_pillow_image_is_read_as_training_reads_its_file():
    clear = PilImage.new("RGBA", (8, 4), (255, 0, 0, 0))
    (white,) = as_pictures(clear)
    assert white.shape == (4, 8, 3) and white.dtype == np.uint8 and (white == 255).all()
    gray, same = as_pictures([PilImage.fromarray(ONE[..., 0]), PilImage.fromarray(ONE)])
    np.testing.assert_array_equal(same, ONE)
    np.testing.assert_array_equal(gray[..., 2], ONE[..., 0])
    assert len(paired(clear, ["one?", "two?"], "question")) == 2


def test_one_question_is_for_every_picture_and_one_picture_for_every_question():
    assert [text for _, text in paired([ONE, OTHER], "one?", "question")] == ["one?"] * 2
    assert [text for _, text in paired(ONE, ["one?", "two?"], "question")] == ["one?", "two?"]
    assert len(paired(ONE, "one?", "question")) == 1


def test_numbers_that_do_not_match_are_refused_in_one_line():
    with pytest.raises(ValueError, match="2 pictures but 3 questions; give one question per"):
        paired([ONE, OTHER], ["a", "b", "c"], "question")


def test_a_string_or_a_list_of_segments_is_one_conversation():
    said = [Image(ONE, UNDERSTOOD), Text("one?")]
    assert as_conversations("a red dot") == [[Text("a red dot")]]
    assert as_conversations(["a", "b"]) == [[Text("a")], [Text("b")]]
    assert [len(one) for one in as_conversations(said)] == [2]
    assert [len(one) for one in as_conversations([said, said])] == [2, 2]
    with pytest.raises(ValueError, match="segments, not of int"):
        as_conversations([[3]])


# ---- noise ------------------------------------------------------------------------------------


def test_noise_follows_from_seed_stream_and_place_alone():
    alone = noise_at(4, [7], LATENTS, (3,))[0]
    np.testing.assert_array_equal(noise_at(4, range(9), LATENTS, (3,))[7], alone)


def test_no_two_seeds_streams_or_places_share_noise():
    """Sums such as seed + place, or a salt between streams, would make some of these equal."""
    salt = 1_000_003
    draws = {
        noise_at(seed, [place], stream, (4,))[0].tobytes()
        for seed in (0, 1, 2, salt, salt + 1)
        for stream in (LATENTS, PIXELS)
        for place in (0, 1, 2, salt)
    }
    assert len(draws) == 5 * 2 * 4


def test_derived_seeds_are_far_apart():
    seeds = {derived_seed(seed, turn) for seed in range(20) for turn in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**32 for seed in seeds)


# ---- batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "size", "multiple", "sizes"),
    [(5, 2, 1, [2, 2, 2]), (3, 64, 1, [4]), (1, 64, 1, [1]), (1, 64, 8, [8]), (9, 6, 4, [8, 8])],
)
def test_batches_have_one_size_that_divides_over_the_devices(items, size, multiple, sizes):
    seen = []

    def run(batch):
        seen.append(len(batch))
        return [10 * item for item in batch]

    assert in_batches(run, range(items), size, multiple) == [10 * item for item in range(items)]
    assert seen == sizes
