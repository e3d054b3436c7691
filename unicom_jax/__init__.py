"""Unified multimodal models in JAX: train them, use them, export them to PyTorch.

    from unicom_jax import Generator

    model = Generator.load("runs/quickstart")
    circle = model.draw("a red circle")[0].image
    print(model.answer(circle, "what colour is the circle?"))

The names in `__all__` are public; everything else may change. Each is imported on first access, so
`import unicom_jax` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    # use
    "Generator": "unicom_jax.inference.generator",
    "export": "unicom_jax.exchange.export",
    "ExportOptions": "unicom_jax.exchange.export:Options",
    # train
    "load_config": "unicom_jax.config",
    "run_stages": "unicom_jax.training.run",
    # extend
    "ImageModel": "unicom_jax.families.images",
    "LatentCodec": "unicom_jax.models.latent_codec",
    "MixedBatch": "unicom_jax.core.batch",
    "Module": "unicom_jax.core.module",
    "ParamSpec": "unicom_jax.core.module",
    "Transformer": "unicom_jax.models.transformer",
    "UnifiedModel": "unicom_jax.families.unified",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'unicom_jax' has no attribute {name!r}")
    module, _, renamed = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), renamed or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
