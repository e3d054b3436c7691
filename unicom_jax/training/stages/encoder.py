"""Stage `encoder`: pictures against captions under SigLIP's sigmoid loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.core.pixels import to_unit
from unicom_jax.models.build import build_encoder
from unicom_jax.models.contrastive import pair_logits, sigmoid_loss
from unicom_jax.training.step import Stage


def encoder_stage(config: Mapping[str, Any]) -> Stage:
    """The contrastive stage. Batches are `data_pipelines.pictures.PictureBatch`es."""
    model = build_encoder(config)
    dtype = config["compute_dtype"]

    def loss(params: Params, frozen: Params, batch: Any, row_keys: jax.Array) -> LossTerms:
        del frozen, row_keys  # nothing comes before this stage, and nothing in it is random
        patches = to_unit(batch.patches).astype(dtype)
        images = model.embed_images(params, patches, batch.grids)
        texts = model.embed_texts(params, batch.tokens)
        total, count = sigmoid_loss(images, texts, params["logit_scale"], params["logit_bias"])
        logits = pair_logits(images, texts, params["logit_scale"], params["logit_bias"])
        hits = jnp.argmax(logits, axis=1) == jnp.arange(logits.shape[0])
        return {"contrastive": (total, count), "retrieval": (jnp.sum(hits * 1.0), count)}

    return Stage(
        name="encoder",
        module=model,
        loss=loss,
        weights={"contrastive": 1.0},
        freeze=tuple(config["encoder"]["freeze"]),
        rows_are_independent=False,
    )
