"""The same step as the library computes it, with its pathway, mask and trainer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from experiments import base
from experiments.benchmarks.race import Contestant
from experiments.benchmarks.standard import (
    CLIP_NORM,
    FLOW_WEIGHT,
    LEARNING_RATE,
    TEXT_WEIGHT,
    WEIGHT_DECAY,
    Standard,
)
from unicom_jax.core.batch import MaskIntervals, MixedBatch, Role
from unicom_jax.core.positions import image_positions
from unicom_jax.families.latents import ImageEmbedding, Prepared
from unicom_jax.families.unicom import UnicomImages
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.models.flow_head import make_flow_head
from unicom_jax.models.transformer import Transformer
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.step import Stage, Trainer

FEATURE_DIM = 64  # of raw features; no image of this batch is looked at, so hardly any work
OPTIMIZER = base.training(
    optimizer="adamw",
    learning_rate=LEARNING_RATE,
    schedule="constant",
    warmup_steps=0,
    weight_decay=WEIGHT_DECAY,
    clip_norm=CLIP_NORM,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
)


def make_model(sizes: Standard, unroll: int = 1) -> UnifiedModel:
    return UnifiedModel(
        transformer=Transformer(
            vocab_size=sizes.vocab_size,
            width=sizes.width,
            depth=sizes.depth,
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=sizes.head_dim,
            mlp_dim=sizes.mlp_dim,
            qkv_bias=False,
            qk_norm=True,
            unroll=unroll,
        ),
        images=UnicomImages(
            embedding=ImageEmbedding(FEATURE_DIM, sizes.latent_dim, sizes.width),
            head=make_flow_head("linear", sizes.width, sizes.latent_dim),
        ),
    )


def make_batch(sizes: Standard) -> MixedBatch:
    """The standard batch as the data pipelines would hand it over."""
    rows, text, tokens = sizes.rows, sizes.text_tokens, sizes.tokens()

    def per_row(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, (rows, *values.shape)).copy()

    slot = np.arange(sizes.slots, dtype=np.int32)
    is_text = slot < text
    image = image_positions(text, sizes.grid, sizes.grid)
    positions = np.concatenate([np.stack([slot[:text]] * 2, -1), image])
    targets = np.zeros((rows, sizes.slots), np.int32)
    targets[:, : text - 1] = tokens[:, 1:]
    return MixedBatch(
        tokens=np.pad(tokens, ((0, 0), (0, sizes.image_tokens))),
        positions=per_row(positions.astype(np.int32)),
        mask=MaskIntervals(
            context_start=per_row(np.zeros_like(slot)),
            context_stop=per_row(np.where(is_text, slot + 1, text).astype(np.int32)),
            span_start=per_row(np.where(is_text, 0, text).astype(np.int32)),
            span_stop=per_row(np.where(is_text, 0, sizes.slots).astype(np.int32)),
        ),
        roles=per_row(np.where(is_text, Role.TEXT, Role.NOISY).astype(np.int32)),
        image_index=per_row(np.zeros_like(slot)),
        image_token=per_row(np.where(is_text, 0, slot - text).astype(np.int32)),
        targets=targets,
        target_weights=per_row((slot < text - 1).astype(np.float32)),
        patches=np.zeros((rows, 1, sizes.image_tokens, 3), np.uint8),
        grids=np.full((rows, 1, 2), sizes.grid, np.int32),
        draws=np.zeros((rows, 1), np.int32),
    )


def make_stage(sizes: Standard, unroll: int = 1) -> Stage:
    """The unified stage's loss on latents that are already there."""
    model = make_model(sizes, unroll)

    def loss(params, frozen, batch, row_keys):
        prepared = Prepared(frozen["features"], frozen["latents"], batch.grids, batch.grids)
        return model.loss_terms(params, batch, prepared, row_keys)

    weights = {"flow": FLOW_WEIGHT, "text": TEXT_WEIGHT}
    return Stage("benchmark", model, loss, weights)


def images(sizes: Standard) -> dict[str, jax.Array]:
    """Features and latents (B, 1, N, ...) of the batch."""
    latents = sizes.latents()[:, None]
    features = jnp.zeros((*latents.shape[:3], FEATURE_DIM))
    return {"features": features, "latents": jnp.asarray(latents)}


def contestant(sizes: Standard, params, name: str = "unicom_jax", unroll: int = 1) -> Contestant:
    """Our step from the given weights (copied); `unroll`: layers per iteration of its loop."""
    stage = make_stage(sizes, unroll)
    optimizer, schedule = make_optimizer(OPTIMIZER, stage.module.specs(), steps=1_000_000)
    trainer = Trainer(stage, optimizer, schedule, make_mesh(), seed=0)
    compiled = trainer.train_step()
    state = [trainer.init_state(jax.tree.map(jnp.copy, params))]
    frozen, batch = images(sizes), jax.tree.map(jnp.asarray, make_batch(sizes))

    def run() -> float:
        state[0], metrics = compiled(state[0], frozen, batch)
        return float(jax.block_until_ready((state, metrics))[1]["loss"])

    return Contestant(name, run, stage.module.param_count())
