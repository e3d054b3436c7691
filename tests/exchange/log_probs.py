"""Log-probabilities of captions: those that reinforcement learning trains on, and the export's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import torch

from data_pipelines.images import patchify
from data_pipelines.segments import UNDERSTOOD, Image, Text
from tests.data.samples import picture
from tests.exchange.own_types import theirs
from unicom_jax.inference.generator import Generator
from unicom_jax.rl.build import models_of
from unicom_jax.rl.rows import caption_log_probs, picture_rows
from unicom_jax.rl.template import make_template

QUESTION, MOST = "how many dots?", 7


def both_log_probs(generator: Generator, model) -> tuple[np.ndarray, np.ndarray]:
    """Of the same random captions of two pictures, (2, MOST) by JAX and by the exported `model`.

    JAX reads whole rows in training's own pass; the model writes token after token with a cache.
    """
    config, tokenizer = generator.config, generator.tokenizer
    template = make_template(config, tokenizer, QUESTION)
    models, side = models_of(config, template), config["data"]["image_size"]
    pictures = [picture(seed, side, side) for seed in range(2)]
    patches = jnp.stack([patchify(one, config["data"]["patch"]) for one in pictures])
    rows = picture_rows(template, patches, jnp.array([template.grid] * 2, jnp.int32))
    prepared = models.unified.images.prepare(models.family.frozen_of(generator.params), rows)
    known = np.setdiff1d(np.arange(tokenizer.vocab_size), [*template.special, *template.stops])
    tokens = np.random.default_rng(0).choice(known, (2, MOST))

    @jax.jit
    def ours(params: object) -> jax.Array:
        return caption_log_probs(
            models.unified, params, prepared, rows, template, jnp.asarray(tokens)
        )

    heard = []

    def force(scores: torch.Tensor) -> torch.Tensor:
        """The caption's next token, whatever the model would write."""
        chosen = torch.from_numpy(tokens[:, len(heard)])
        heard.append(scores.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0])
        return chosen

    asked = [[Image(one, UNDERSTOOD), Text(QUESTION)] for one in pictures]
    prefixes = [model.processor.prefix([theirs(model, s) for s in one]) for one in asked]
    with torch.no_grad():
        written = model.continue_tokens(model.read(prefixes), MOST, force)
    assert written == tokens.tolist()
    return np.asarray(ours(generator.params["unified"])), torch.stack(heard, 1).numpy()
