"""The stages of the unified model: one loss with many mixtures, rates and frozen parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.sources.configured import mixture_parts
from unicom_jax.config import ConfigError
from unicom_jax.core.attention import visible_share
from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.core.parts import named_parts
from unicom_jax.core.paths import as_path
from unicom_jax.families.build import build_encoder, build_unified
from unicom_jax.parallel.sharding import fetch
from unicom_jax.runs.features import encode
from unicom_jax.runs.packed import check_probe, read_probe
from unicom_jax.training.step import Stage


def unified_stage(name: str, config: Mapping[str, Any]) -> Stage:
    """A stage of the unified model on top of its family's frozen weights."""
    settings, parts = config[name], mixture_parts(config, name)
    several = len(parts) > 1  # else the losses of the part are those of the batch
    model = dataclasses.replace(
        build_unified(config),
        parts=len(parts) if several else 0,
        views=settings["views_per_row"],
    )

    def loss(params: Params, frozen: Params, batch: MixedBatch, row_keys: jax.Array) -> LossTerms:
        prepared = jax.lax.stop_gradient(model.images.prepare(frozen, batch))
        return named_parts(model.loss_terms(params, batch, prepared, row_keys), parts)

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
    """Checks that packed rows hold features of the encoder on which the stage builds.

    Raises:
      SourceError: the features are another encoder's.
      ConfigError: the family reads only pictures.
    """
    directory = as_path(config["data"]["packed"]).expanduser()
    if (probe := read_probe(directory, name)) is None:
        return
    if not build_unified(config).images.takes_features:
        raise ConfigError(
            f"data.packed={directory} contains features instead of pictures, which "
            f"unified.pathway={config['unified']['pathway']} cannot read; prepare the rows with "
            "pictures"
        )
    vision = build_encoder(config).vision
    look = jax.jit(partial(encode, vision, dtype=config["compute_dtype"]))
    found = fetch(look(frozen["encoder"], *probe))
    check_probe(directory, name, np.asarray(found, np.float32))
