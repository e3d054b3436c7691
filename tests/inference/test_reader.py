"""Answers to prompts with pictures, against transformers: preprocessing, reading, decoding."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import qwen_vl_torch
from tests.models.qwen_vl_torch import PICTURE
from unicom_jax.inference.reader import answer, collate
from unicom_jax.inference.text import Sampling

LEAST, MOST, ROOM = 64, 400, 6
PROMPTS = [[3, 7, PICTURE, 8, PICTURE, 4, 9], [PICTURE, 11, 12], [1, 2, 3, 30]]
SIZES = [[(9, 14), (31, 40)], [(17, 6)], []]  # heights and widths


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [[rng.integers(0, 256, (*size, 3), np.uint8) for size in row] for row in SIZES]


@pytest.fixture(scope="module")
def prompts(pictures):
    return collate(qwen_vl_torch.twins()[1], PROMPTS, pictures, LEAST, MOST)


@pytest.fixture(scope="module")
def answers(prompts):
    """The likeliest tokens after each prompt."""
    _, module, params = qwen_vl_torch.twins()
    return np.asarray(answer(module, params, prompts, max_tokens=ROOM))


def processed(images: list[np.ndarray]):
    """Patches and grids from transformers."""
    library = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    size = {"shortest_edge": LEAST, "longest_edge": MOST}
    processor = library.Qwen2VLImageProcessorPil(patch_size=2, merge_size=2, size=size)
    found = processor(images, return_tensors="pt")
    return found["pixel_values"], found["image_grid_thw"]


def test_patches_equal_those_of_transformers(pictures, prompts):
    vision = qwen_vl_torch.twins()[1].vision
    for row, images in enumerate(pictures[:2]):
        expected, grids = processed(images)
        count = len(images)
        np.testing.assert_array_equal(prompts.grids[row, :count], grids[:, 1:])
        ours = np.asarray(vision.prepare(prompts.patches[row], prompts.grids[row]))
        found = [
            one[: rows * columns] for one, (_, rows, columns) in zip(ours, grids, strict=False)
        ]
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)


def test_decoding_with_a_cache_writes_what_transformers_writes(pictures, prompts, answers):
    torch = pytest.importorskip("torch")
    reference = qwen_vl_torch.twins()[0]
    for row, (images, length) in enumerate(zip(pictures, prompts.lengths, strict=True)):
        ids = torch.tensor([prompts.tokens[row, :length].tolist()])
        given = {"input_ids": ids}
        if images:
            patches, grids = processed(images)
            types = (ids == PICTURE).int()
            given |= {"pixel_values": patches, "image_grid_thw": grids, "mm_token_type_ids": types}
        theirs = reference.generate(**given, max_new_tokens=ROOM, do_sample=False)
        np.testing.assert_array_equal(answers[row], theirs[0, length:])


def test_an_answer_ends_with_a_stop_token(prompts, answers):
    _, module, params = qwen_vl_torch.twins()
    end = int(answers[0, 2])
    ended = np.asarray(answer(module, params, prompts, max_tokens=ROOM, stop=[end]))
    for one, whole in zip(ended, answers, strict=True):
        count = list(whole).index(end) + 1 if end in whole else ROOM
        np.testing.assert_array_equal(one[:count], whole[:count])
        assert np.all(one[count:] == -1)


def test_sampled_answers_follow_the_seed(prompts):
    _, module, params = qwen_vl_torch.twins()
    hot = Sampling(temperature=5.0)
    one, again, other = (
        np.asarray(answer(module, params, prompts, max_tokens=ROOM, sampling=hot, seed=seed))
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


@pytest.mark.parametrize("prompt", [[], [3, 4], [PICTURE, PICTURE]])
def test_a_prompt_without_a_token_for_each_picture_is_refused(pictures, prompt):
    with pytest.raises(ValueError, match=f"prompt 1 has {len(prompt)} tokens, .* 1 pictures"):
        collate(qwen_vl_torch.twins()[1], [[5], prompt], [[], pictures[1]])


def test_prompts_without_pictures_have_no_patches():
    prompts = collate(qwen_vl_torch.twins()[1], [[1, 2], [3]], [[], []])
    assert prompts.patches is None and prompts.grids is None
    np.testing.assert_array_equal(prompts.lengths, [2, 1])


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="there are no prompts"):
        collate(qwen_vl_torch.twins()[1], [], [])
