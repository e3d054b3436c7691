"""A small configuration of Cheers for tests, and its sizes."""

from __future__ import annotations

from tests.tiny import tiny_config

PATCH, SIDE, FOLD = 4, 4, 2  # 16 pixels, 4 x 4 tokens, 2 x 2 slots
TOKENS, LATENT = SIDE**2, 12
BUCKETS = {"encoder__naflex": True, "data__policy": "bucket"}


def configured(**overrides):
    own = {
        "unified__pathway": "cheers",
        "unified__fold": FOLD,
        "data__patch": PATCH,
        "data__image_size": PATCH * SIDE,
        "data__scenes__sizes": ((PATCH * SIDE, PATCH * SIDE),),
        "autoencoder__latent_channels": LATENT // 4,
        "autoencoder__widths": (8, 16),
        "autoencoder__norm_groups": 4,
    }
    config = tiny_config(**{**own, **overrides})
    config.unified.cheers.semantics.update({"depth": 2, "heads": 4, "kv_heads": 2})
    config.unified.cheers.details.update({"depth": 1, "heads": 4, "kv_heads": 2})
    return config
