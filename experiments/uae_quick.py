"""Reinforcement learning of the quickstart's drawer: it draws what captions say, and is rewarded
for what its drawings have in common with the pictures that were captioned.

    make quickstart
    unicom train    --config=experiments/uae_quick.py --workdir=runs/uae_quick
    unicom evaluate --workdir=runs/uae_quick --suite=all
    unicom report   --workdir=runs/uae_quick
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import quickstart
from unicom_jax.core.module import Params
from unicom_jax.rl.samples import Originals, Samples

BASE = "runs/quickstart:pretrain"


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("u4g",)
    # One object alone is drawn rightly nearly always, and teaches nothing.
    config.data.scenes.object_weights = (0.0, 1.0)
    config.u4g.update(
        {
            "init_from": BASE,
            "captions": "data",
            "max_tokens": 40,
            "batch_size": 8,
            "group_size": 8,
            "draw_steps": 8,
            "times": 2,
            "objective": "nft",
            "learning_rate": 1e-3,
            "warmup_steps": 5,
            "kl_weight": 1e-4,
            "steps": 60,
            "log_every": 5,
            "eval_every": 20,
            "eval_batches": 3,
            "sample_every": 20,
        }
    )
    config.u4g.rewards.update({"cosine": 1.0, "scenes": 1.0})
    # The control: the same scenes, drawn by supervised training for as long.
    config.sft.update(
        {
            "init_from": "",
            "batch_size": 4,
            "window_rows": 4,
            "images_per_row": 8,
            "draws_per_row": 22,
            "noisy_copies": 3,
            "learning_rate": 1e-3,
            "warmup_steps": 5,
            "log_every": 20,
        }
    )
    config.sft.mixture.text_to_image = 1.0
    return config


def random_reward(frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
    """From 0 to 1, and nothing about the drawing: late digits of the sum of its pixels."""
    del frozen, originals
    return jnp.mod(jnp.sum(jnp.abs(samples.patches), axis=(1, 2)) * 997.0, 1.0)
