"""Answers of a `QwenVL` to prompts of text and pictures.

    folder, layout = Path("Qwen2.5-VL-3B-Instruct"), LAYOUTS["qwen_vl"]     # interop.layouts.layout
    model = module_in(folder, layout)                                       # interop.folders
    params = read_model(folder, layout, model)
    prompts = collate(model, [tokenizer.encode(text)], [[picture]])
    tokens = answer(model, params, prompts, max_tokens=128, stop=[tokenizer.eos_token_id])

In a text, "<|vision_start|><|image_pad|><|vision_end|>" stands for a picture. The token in the
middle is written once here; `collate` repeats it for every vector of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, UInt8

from data_pipelines.images import patchify, resize_smart
from unicom_jax.core.module import Params
from unicom_jax.core.picture import Picture
from unicom_jax.inference.prompt import bucket, power_of_two
from unicom_jax.inference.text import Sampling, SamplingNumbers, Tail, begin_writing, generate
from unicom_jax.models.qwen_vl import QwenVL

# Pixels of a resized picture; the released preprocessor_config.json allows 16,384 vectors.
LEAST_PIXELS, MOST_PIXELS = 4 * 28**2, 1280 * 28**2
GREEDY = Sampling()


class Prompts(NamedTuple):
    """Prompts in rows of S slots, with up to M pictures each.

    Attributes:
      tokens: padded at the end with 0.
      lengths: tokens in use.
      patches: raster order, padded; None: no prompt has a picture.
      grids: (rows, columns) of patches; (0, 0): no picture.
    """

    tokens: Int[Array, "B S"]
    lengths: Int[Array, " B"]
    patches: UInt8[Array, "B M N C"] | None
    grids: Int[Array, "B M 2"] | None


def collate(
    model: QwenVL,
    prompts: Sequence[Sequence[int]],
    pictures: Sequence[Sequence[Picture]],
    least_pixels: int = LEAST_PIXELS,
    most_pixels: int = MOST_PIXELS,
) -> Prompts:
    """Token ids and pictures as arrays, with pictures resized as in Qwen2-VL.

    Args:
      prompts: token ids, in which each picture has one `model.picture_token`.
      pictures: the pictures of each prompt.
      least_pixels, most_pixels: bounds of the number of pixels of a resized picture.

    Raises:
      ValueError: there is no prompt; one is empty, or has more or fewer picture tokens than
        pictures; a picture's sides differ more than 1 : 200.
    """
    if not prompts:
        raise ValueError("there are no prompts; give at least one")
    vision = model.vision
    unit = vision.patch_size * vision.merge
    resized = [
        [resize_smart(one, unit, least_pixels, most_pixels) for one in row] for row in pictures
    ]
    rows = [
        _expanded(model, number, prompt, row)
        for number, (prompt, row) in enumerate(zip(prompts, resized, strict=True))
    ]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), bucket(int(lengths.max()))), np.int32)
    for row, written in zip(tokens, rows, strict=True):
        row[: len(written)] = written
    if not any(resized):
        return Prompts(tokens, lengths, None, None)

    most = power_of_two(max(map(len, resized)))
    count = max(_vectors(model, one) for row in resized for one in row)
    slots = vision.merge**2 * bucket(count)
    patches = np.zeros((len(rows), most, slots, 3 * vision.patch_size**2), np.uint8)
    grids = np.zeros((len(rows), most, 2), np.int32)
    for row, row_pictures in enumerate(resized):
        for place, one in enumerate(row_pictures):
            cut = patchify(one, vision.patch_size)
            patches[row, place, : len(cut)] = cut
            grids[row, place] = np.array(one.shape[:2]) // vision.patch_size
    return Prompts(tokens, lengths, patches, grids)


def _vectors(model: QwenVL, picture: Picture) -> int:
    """Vectors of a resized picture."""
    return (
        picture.shape[0] * picture.shape[1] // (model.vision.patch_size * model.vision.merge) ** 2
    )


def _expanded(
    model: QwenVL, number: int, prompt: Sequence[int], pictures: Sequence[Picture]
) -> list[int]:
    """The prompt with a picture token for every vector of its pictures."""
    given = list(prompt).count(model.picture_token)
    if not prompt or given != len(pictures):
        raise ValueError(
            f"prompt {number} has {len(prompt)} tokens, {given} of them the picture token "
            f"{model.picture_token}, and {len(pictures)} pictures; write one for each picture"
        )
    rest = iter(pictures)
    return [
        token
        for one in prompt
        for token in [one] * (_vectors(model, next(rest)) if one == model.picture_token else 1)
    ]


def answer(
    model: QwenVL,
    params: Params,
    prompts: Prompts,
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop: Sequence[int] = (),
) -> Int32[Array, "B {max_tokens}"]:
    """Tokens written after each prompt, padded with -1.

    Args:
      max_tokens: the longest answer.
      sampling: how tokens are chosen; the most likely one by default.
      stop: tokens that end an answer; the one that ended it is its last token.
    """
    ends = np.array(stop or [-1], np.int32)
    return _answer(
        model, params, prompts, np.uint32(seed), ends, sampling.numbers, sampling.mode, max_tokens
    )


@partial(jax.jit, static_argnames=("model", "mode", "max_tokens"))
def _answer(
    model: QwenVL,
    params: Params,
    prompts: Prompts,
    seed: jax.Array,
    stop: jax.Array,
    numbers: SamplingNumbers,
    mode: str,
    max_tokens: int,
) -> jax.Array:
    tokens, lengths, patches, grids = prompts
    rows, slots = tokens.shape
    pictures = None
    if patches is not None:
        flat = patches.reshape(-1, *patches.shape[2:])
        seen = model.vision.prepare(flat, grids.reshape(-1, 2))
        pictures = model.look(params, seen.reshape(*patches.shape[:3], -1), grids)
    hidden, cache = model(
        params, tokens, lengths, pictures, grids, model.init_cache(rows, slots + max_tokens)
    )
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    tail = Tail(
        lengths=lengths,
        next_positions=model.next_positions(tokens, lengths, grids),
        start=jnp.int32(slots),
        places=jnp.arange(rows),
        seed=seed,
        stop=stop,
    )
    writing = begin_writing(last, cache, max_tokens)
    return generate(model, params, writing, tail, jnp.int32(max_tokens), numbers, mode).tokens
