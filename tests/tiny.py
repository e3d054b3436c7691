"""The smallest configuration that uses every part: 32 px pictures of four tokens."""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base
from unicom_jax.config import UNIFIED_STAGES
from unicom_jax.config.schema import POLICY_STAGES, ROW_STAGES

# Makes it one of the family UAE: pictures of 32 pixels are 4 x 4 tokens, which are read as 2 x 2
# slots.
UAE = {
    "unified__pathway": "uae",
    "unified__fold": 2,
    "unified__image_positions": "mrope",
    "unified__transformer__rope_sections": (2, 3, 3),
    "unified__uae__vision__patch_size": 8,
    "unified__uae__vision__window_size": 16,
    "data__patch": 8,
    "data__image_size": 32,
}


def tiny_config(**overrides) -> ConfigDict:
    """`overrides` are dotted keys with `__` for dots, e.g. `codec__steps=3`."""
    config = base.get_config()
    config.data.image_size = 32
    config.data.source.size = 64
    config.data.vocab_size = 400
    config.data.scenes.sizes = ((32, 32),)
    config.data.scenes.object_weights = (1.0,)
    config.encoder.vision.update({"width": 32, "depth": 1, "heads": 2, "mlp_dim": 32})
    config.encoder.text.update(
        {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 32, "max_length": 16}
    )
    config.autoencoder.update(
        {"latent_channels": 2, "widths": (8, 8), "norm_groups": 4, "statistics_batches": 2}
    )
    config.autoencoder.discriminator.update({"width": 8, "layers": 2})
    config.codec.latent_dim = 8
    config.codec.sample_steps = 2
    config.codec.statistics_batches = 2
    config.codec.decoder.update({"width": 32, "depth": 1, "heads": 2, "mlp_dim": 32})
    config.unified.transformer.update(
        {"width": 32, "depth": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "mlp_dim": 32}
    )
    config.unified.flow_decoder.update({"width": 32, "depth": 1, "heads": 2, "mlp_dim": 32})
    config.unified.connector.depth = 1
    config.unified.uae.vision.update({"width": 16, "depth": 2, "heads": 2, "mlp_dim": 16})
    config.unified.uae.vision.update({"whole_layers": (1,)})
    config.unified.uae.decoder.update({"depth": 2, "heads": 2, "head_dim": 8, "position_side": 8})
    config.unified.uae.decoder.update({"context_dim": 8, "pooled_dim": 4})
    for stage in ("semantics", "details"):
        config.unified.cheers[stage].update({"depth": 1, "heads": 2, "kv_heads": 1})
    for stage in dict.fromkeys((*base.STAGES, "autoencoder", *ROW_STAGES)):
        config[stage].update(
            {"steps": 4, "batch_size": 4, "log_every": 1, "warmup_steps": 1, "save_every": 2}
        )
    for stage in ROW_STAGES:
        config[stage].update({"sequence_length": 96, "images_per_row": 6, "window_rows": 4})
    for stage in UNIFIED_STAGES:
        config[stage].mixture.update({"text_to_image": 0.5, "visual_qa": 0.3, "edit": 0.2})
    for stage in POLICY_STAGES:
        config[stage].update(
            {"steps": 2, "batch_size": 2, "log_every": 1, "warmup_steps": 1, "save_every": 1}
        )
        config[stage].update({"group_size": 2, "max_tokens": 6, "draw_steps": 3})
    config.jointly.drawings = 2
    config.evaluation.update({"batch_size": 4})
    config.sample.update({"steps": 2, "max_tokens": 4})
    for key, value in overrides.items():
        *path, last = key.split("__")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    return config
