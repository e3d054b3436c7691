"""The stages of the unified model: one loss, many mixtures, rates, freezes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unicom_jax.core.activations import PICTURES, ROWS, place
from unicom_jax.core.attention import visible_share
from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.parallel.sharding import fetch
from unicom_jax.runs.features import encode
from unicom_jax.runs.packed import check_probe, read_probe
from unicom_jax.training.step import Stage


def unified_stage(name: str, config: Mapping[str, Any]) -> Stage:
    """A sub-stage over the frozen encoder and codec (`frozen["encoder"]`, `frozen["codec"]`)."""
    settings = config[name]
    vision, codec = build_encoder(config).vision, build_codec(config)
    model = build_unified(config)
    dtype = config["compute_dtype"]

    def look(frozen: Params, batch: MixedBatch) -> tuple[jax.Array, jax.Array]:
        """Features (B, M, N, D) and latents (B, M, n, d) of a batch's images.

        Features that the batch brings along are taken as they are: the encoder does not run.
        """
        rows, images = batch.grids.shape[:2]
        grids = place(batch.grids.reshape(rows * images, 2), PICTURES)
        pictures = batch.patches if batch.features is None else batch.features
        pictures = place(pictures.reshape(rows * images, *pictures.shape[2:]), PICTURES)
        if batch.features is None:
            features = vision(frozen["encoder"], to_unit(pictures).astype(dtype), grids)
        else:
            features = pictures.astype(dtype)
        latents = codec.encode(frozen["codec"], features, grids)
        # Any slot of a row may hold a token of any of the row's pictures.
        both = (place(x, ROWS) for x in (features, latents))
        shaped = (x.reshape(rows, images, *x.shape[1:]) for x in both)
        return tuple(jax.lax.stop_gradient(x) for x in shaped)

    def loss(params: Params, frozen: Params, batch: MixedBatch, row_keys: jax.Array) -> LossTerms:
        features, latents = look(frozen, batch)
        return model.loss_terms(params, batch, features, latents, row_keys)

    weights = {"flow": settings["flow_weight"], "text": settings["text_weight"]}
    held = model.frozen(draws=bool(settings["flow_weight"]))
    return Stage(
        name=name,
        module=model,
        loss=loss,
        weights={term: weight for term, weight in weights.items() if weight},
        freeze=(*held, *settings["freeze"]),
        predicted=lambda batch: jnp.mean(batch.target_weights != 0),
        visible=lambda batch: visible_share(batch.mask, batch.tokens.shape[1]),
    )


def check_packed_features(config: Mapping[str, Any], name: str, frozen: Params) -> None:
    """Looks whether packed rows hold the features of the encoder that the stage builds on.

    Raises:
      SourceError: they are another encoder's.
    """
    directory = Path(config["data"]["packed"])
    if (probe := read_probe(directory, name)) is None:
        return
    vision = build_encoder(config).vision
    look = jax.jit(partial(encode, vision, dtype=config["compute_dtype"]))
    found = fetch(look(frozen["encoder"], *probe))
    check_probe(directory, name, np.asarray(found, np.float32))
