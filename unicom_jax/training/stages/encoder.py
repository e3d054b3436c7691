"""Stage `encoder`: pictures and captions under SigLIP's sigmoid loss.

L = contrastive + λ_pixel · ‖x − linear(Z)‖²      a patch's pixels from its own feature
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.flow import flow_loss
from unicom_jax.core.grids import token_mask
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import build_encoder
from unicom_jax.models.contrastive import pair_logits, sigmoid_loss, unit_norm
from unicom_jax.training.step import Stage


def encoder_stage(name: str, config: Mapping[str, Any]) -> Stage:
    """The contrastive stage with the settings `config[name]`.

    Batches are `data_pipelines.loading.pictures.PictureBatch`es.
    """
    model = build_encoder(config)
    dtype = config["compute_dtype"]

    weights = {"contrastive": 1.0}
    if model.pixel_head:
        weights["pixels"] = config["encoder"]["pixel_weight"]

    def loss(params: Params, frozen: Params, batch: Any, row_keys: jax.Array) -> LossTerms:
        del frozen, row_keys  # no stage comes before this one, and nothing in it is random
        batch = jax.tree.map(lambda x: place(x, PICTURES), batch)
        patches = to_unit(batch.patches).astype(dtype)
        features = model.vision(params["vision"], patches, batch.grids)
        images = unit_norm(model.vision.pool(params["vision"], features, batch.grids))
        texts = model.embed_texts(params, batch.tokens)
        pair = images, texts, params["logit_scale"], params["logit_bias"]
        total, count = sigmoid_loss(*pair)
        hits = jnp.argmax(pair_logits(*pair), axis=1) == jnp.arange(images.shape[0])
        terms = {"contrastive": (total, count), "retrieval": (jnp.sum(hits * 1.0), count)}
        if model.pixel_head:
            read = model.pixels(params["pixels"], features)
            real = token_mask(batch.grids, features.shape[1])
            terms["pixels"] = flow_loss(read, patches, real)
        return terms

    return Stage(
        name=name,
        module=model,
        loss=loss,
        weights=weights,
        freeze=tuple(config[name]["freeze"]),
        rows_are_independent=False,
    )
