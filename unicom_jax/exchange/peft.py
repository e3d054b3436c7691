"""Adapters of a LoRA stage in the layout of Hugging Face PEFT.

    model = AutoModel.from_pretrained("BASE", trust_remote_code=True)
    model = PeftModel.from_pretrained(model, "ADAPTERS")

BASE is the export of the base weights (`unicom export --to=pytorch --weights=base`); ADAPTERS
holds `adapter_config.json` and `adapter_model.safetensors`. Without `--weights=base` an export of
the whole model has the adapters merged into its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from unicom_jax.config import ConfigError
from unicom_jax.core.layers import ADAPTER
from unicom_jax.core.lora import adapters
from unicom_jax.core.module import Params, ParamSpec
from unicom_jax.interop.layouts import exported
from unicom_jax.interop.mapping import Rule, Table
from unicom_jax.interop.transfer import store_weights

TARGET = "peft"  # of `unicom export --to`
PREFIX = "base_model.model."  # PEFT prepends this to the names of the wrapped model


def write_adapters(
    folder: Path, module: exported.Model, params: Mapping[str, Params], dtype: str
) -> None:
    """Writes the adapters in `params`, the parameters of `module` together with its adapters.

    Raises:
      ConfigError: there are none, or one is of a layer that is not a single layer in PyTorch.
    """
    found = adapters(params)
    if not found:
        raise ConfigError(
            "the weights have no adapters: its newest stage was trained without lora.rank; export "
            "the whole model with --to=pytorch"
        )
    layers = {path: _foreign(path, exported.table(module)) for path in found}
    ours = {(*path, ADAPTER, side): found[path][side] for path in found for side in "ab"}
    specs = {path: ParamSpec(leaf.shape, (None,) * leaf.ndim) for path, leaf in ours.items()}
    table = tuple(
        Rule("/".join((*path, ADAPTER, side)), f"{PREFIX}{name}.lora_{side.upper()}.weight", (1, 0))
        for path, name in layers.items()
        for side in "ab"
    )
    one_file = sum(leaf.size * 8 for leaf in ours.values())  # PEFT reads no shards
    store_weights(
        folder,
        table,
        traverse_util.unflatten_dict(specs),
        traverse_util.unflatten_dict(ours),
        dtype=dtype,
        stem="adapter_model",
        shard_bytes=one_file,
    )
    about = _describe(found, layers)
    (folder / "adapter_config.json").write_text(
        json.dumps(about, indent=2) + "\n", encoding="utf-8"
    )


def _foreign(path: tuple[str, ...], table: Table) -> str:
    """The PyTorch name of a layer, with `{layer}` in it if our layer is part of a stack."""
    kernel = "/".join((*path, "kernel"))
    rule = next(rule for rule in table if kernel in rule.paths)
    if len(rule.paths) > 1 or rule.axes != (1, 0) or rule.shape:
        raise ConfigError(
            f"{'/'.join(path)} is a part of the tensor {rule.theirs} in PyTorch, so its adapter "
            "has no layer there; export the merged weights with --to=pytorch"
        )
    return rule.theirs.removesuffix(".weight")


def _describe(
    found: Mapping[tuple[str, ...], Mapping[str, np.ndarray]],
    layers: Mapping[tuple[str, ...], str],
) -> dict[str, Any]:
    """adapter_config.json. Layers have full names, since PEFT also matches names by their end."""
    names = []
    for path, name in layers.items():
        count = len(found[path]["a"]) if found[path]["a"].ndim == 3 else 1
        names += [name.replace("{layer}", str(number)) for number in range(count)]
    first = next(iter(found.values()))
    rank = first["a"].shape[-1]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": float(np.ravel(first["scale"])[0]) * rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(set(names)),
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
