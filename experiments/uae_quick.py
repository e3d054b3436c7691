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
    config.stages = ("g4u", "u4g")
    config.data.scenes.object_weights = (1.0, 1.0)
    for stage in config.stages:
        config[stage].update(
            {
                "max_tokens": 36,
                "batch_size": 8,
                "group_size": 8,
                "draw_steps": 8,
                "steps": 40,
                "warmup_steps": 5,
                "kl_weight": 1e-3,
                "log_every": 5,
                "eval_every": 20,
                "eval_batches": 2,
                "sample_every": 20,
            }
        )
        config[stage].rewards.update({"cosine": 1.0, "scenes": 1.0})
        config[stage].learning_rate = 3e-4
    config.g4u.init_from = BASE
    config.u4g.update({"objective": "nft", "times": 2})
    # The control: supervised training on the same scenes.
    config.sft.update(
        {
            "batch_size": 4,
            "window_rows": 4,
            "images_per_row": 8,
            "draws_per_row": 22,
            "noisy_copies": 3,
            "learning_rate": 1e-3,
            "warmup_steps": 5,
        }
    )
    config.sft.mixture.update({"text_to_image": 0.7, "image_to_text": 0.3})
    return config


def random_reward(frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
    """From 0 to 1, and nothing about the drawing: late digits of the sum of its pixels."""
    del frozen, originals
    return jnp.mod(jnp.sum(jnp.abs(samples.patches), axis=(1, 2)) * 997.0, 1.0)
