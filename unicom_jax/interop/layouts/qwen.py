"""Qwen2, Qwen2.5 and Qwen3 as transformers writes them: `Qwen2ForCausalLM`, `Qwen3ForCausalLM`.

The two differ in attention: Qwen2 has biases of query, key and value (`qkv_bias`), Qwen3 has norms
of queries and keys (`qk_norm`). A tied head is either not in the file or stored a second time
(`twins`). Our model may have a larger vocabulary than the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unicom_jax.config import ConfigError
from unicom_jax.core.positions import FEW_TURNS, MANY_TURNS, SCALINGS, RopeScaling
from unicom_jax.interop.layouts.description import check_fixed, read_fields
from unicom_jax.interop.mapping import Rule, Table, linear, norm
from unicom_jax.models.transformer import Transformer

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"

# Our fields: the key of config.json, and its default in both families.
FIELDS = {
    "vocab_size": ("vocab_size", 151_936),
    "width": ("hidden_size", 4096),
    "depth": ("num_hidden_layers", 32),
    "heads": ("num_attention_heads", 32),
    "mlp_dim": ("intermediate_size", 22_016),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tied_head": ("tie_word_embeddings", False),
}
FIXED = {"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,)}
HINTS = {HEAD: "tie_word_embeddings in its config.json says whether there is one"}
REMEDY = "take a Qwen2, Qwen2.5 or Qwen3 language model without these"


def table(module: Transformer) -> Table:
    """Rules for all weights of `module`."""
    layer = "model.layers.{layer}"
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    inward = (
        rule
        for ours, theirs in names.items()
        for rule in linear(
            f"blocks/attention/{ours}", f"{layer}.self_attn.{theirs}", bias=module.qkv_bias
        )
    )
    head_norms = (
        *norm("blocks/attention/query_norm", f"{layer}.self_attn.q_norm", bias=False),
        *norm("blocks/attention/key_norm", f"{layer}.self_attn.k_norm", bias=False),
    )
    return (
        Rule("embedding/table", EMBEDDING),
        *norm("blocks/attention_norm", f"{layer}.input_layernorm", bias=False),
        *inward,
        *(head_norms if module.qk_norm else ()),
        *linear("blocks/attention/out", f"{layer}.self_attn.o_proj", bias=False),
        *norm("blocks/mlp_norm", f"{layer}.post_attention_layernorm", bias=False),
        *linear("blocks/mlp/gate", f"{layer}.mlp.gate_proj", bias=False),
        *linear("blocks/mlp/up", f"{layer}.mlp.up_proj", bias=False),
        *linear("blocks/mlp/down", f"{layer}.mlp.down_proj", bias=False),
        *norm("norm", "model.norm", bias=False),
        *(() if module.tied_head else linear("head", "lm_head", bias=False)),
    )


def twins(module: Transformer) -> dict[str, str]:
    """Tensors that may be stored a second time: {name: the one it has to equal}."""
    return {HEAD: EMBEDDING} if module.tied_head else {}


def derived(module: Transformer) -> dict[str, np.ndarray]:
    """The table of rotary frequencies that older versions of transformers stored in each layer."""
    return {"rotary_emb.inv_freq": module.scaling.frequencies(module.head_dim, module.rope_theta)}


def describe(module: Transformer) -> dict[str, Any]:
    """The config.json of `module`, as a model of text alone.

    Raises:
      ValueError: attention has biases and norms as in neither family, or logits are bounded.
    """
    if module.logit_softcap:
        raise ValueError(
            f"Qwen has no softcap of logits, so logit_softcap={module.logit_softcap} would be "
            "lost; export the whole model with --to=pytorch"
        )
    if module.qkv_bias == module.qk_norm:
        raise ValueError(
            "Qwen2 has biases of query, key and value, Qwen3 norms of query and key; "
            f"qkv_bias={module.qkv_bias} with qk_norm={module.qk_norm} is neither of them"
        )
    family = "qwen3" if module.qk_norm else "qwen2"
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "model_type": family,
        **{key: getattr(module, ours) for ours, (key, _) in FIELDS.items()},
        "num_key_value_heads": module.kv_heads,
        "head_dim": module.head_dim,
        **describe_rope(module),
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def module_of(config: Mapping[str, Any], path: Path) -> Transformer:
    """The transformer that a config.json at `path` describes.

    Raises:
      ConfigError: it describes another kind of model, or a Qwen that ours does not support.
    """
    family = config.get("model_type")
    if family not in ("qwen2", "qwen3"):
        raise ConfigError(f"{path}: model_type is {family!r}, not qwen2 or qwen3; {REMEDY}")
    check_fixed(config, FIXED, path, REMEDY)
    check_layers(config, path, REMEDY)
    sizes = read_fields(config, FIELDS, path)
    default = 128 if family == "qwen3" else sizes["width"] // sizes["heads"]
    return Transformer(
        **sizes,
        kv_heads=config.get("num_key_value_heads") or sizes["heads"],
        head_dim=config.get("head_dim") or default,
        **rope_of(config, path, REMEDY),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def check_layers(config: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Raises ConfigError if a layer does not attend to all tokens before."""
    if other := set(config.get("layer_types") or ()) - {"full_attention"}:
        raise ConfigError(f"{path}: layer_types has {other.pop()!r}; {remedy}")


# ---- rotary positions -------------------------------------------------------------------------

# Further YaRN settings of transformers besides factor and length, and the values ours supports.
YARN_FIXED = {
    "beta_fast": (None, MANY_TURNS),
    "beta_slow": (None, FEW_TURNS),
    "mscale": (None, 0),
    "mscale_all_dim": (None, 0),
    "truncate": (True,),
}
DEFAULT_THETA = 10_000.0  # transformers' default


def describe_rope(module: Transformer) -> dict[str, Any]:
    """The entries of config.json about rotary positions."""
    rope = {"rope_type": "default", "rope_theta": module.rope_theta}
    if module.rope_scaling != "none":
        rope |= {"rope_type": module.rope_scaling, "factor": module.rope_factor}
    if module.rope_scaling == "yarn":
        rope["original_max_position_embeddings"] = module.rope_length
    # transformers 5 reads the first entry, older versions the others.
    older = {"rope_scaling": dict(rope)} if module.rope_scaling != "none" else {}
    return {"rope_parameters": rope, "rope_theta": module.rope_theta, **older}


def rope_of(
    config: Mapping[str, Any], path: Path, remedy: str, theta: float = DEFAULT_THETA
) -> dict[str, Any]:
    """Our fields for the rotary positions, read as transformers reads them: `rope_scaling` first.

    Args:
      remedy: what to do about an unsupported kind; ends the message.
      theta: the base of frequencies if it is absent.

    Raises:
      ConfigError: a kind of scaling that ours does not support, or an incomplete description.
    """
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(key) or {}
    if not isinstance(rope, Mapping) or any(isinstance(one, Mapping) for one in rope.values()):
        raise ConfigError(f"{path}: {key} differs between layers; {remedy}")
    if (config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConfigError(f"{path}: partial_rotary_factor turns a part of each head; {remedy}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = float(rope.get("rope_theta", config.get("rope_theta", theta)))
    other = (config.get("rope_parameters") or {}).get("rope_theta", theta)
    if key == "rope_scaling" and other != theta:
        raise ConfigError(
            f"{path}: transformers takes rope_scaling instead of rope_parameters, and then "
            f"rope_theta is {theta:g}, not {other:g}; add rope_theta to rope_scaling"
        )
    if key == "rope_parameters" and (older := config.get("rope_theta", theta)) != theta:
        raise ConfigError(
            f"{path}: rope_theta is {older!r}, and {theta:g} in rope_parameters, which "
            "transformers 5 takes and older versions do not; make them equal"
        )
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in SCALINGS:
        raise ConfigError(
            f"{path}: {key} has rope_type {kind!r}; supported are default, linear and yarn "
            "(dynamic scaling depends on the length of each text, which packed rows do not have)"
        )
    if not isinstance(factor := rope.get("factor"), int | float) or factor < 1:
        raise ConfigError(f"{path}: factor of {key} is {factor!r}; give a number of at least 1")
    scaled = {"rope_theta": theta, "rope_scaling": kind, "rope_factor": float(factor)}
    if kind == "linear":
        return scaled
    check_fixed(rope, YARN_FIXED, path, "leave it out of the description of YaRN")
    usual = RopeScaling("yarn", float(factor), 1).magnitude
    if not math.isclose(rope.get("attention_factor") or usual, usual, rel_tol=1e-6):
        raise ConfigError(
            f"{path}: attention_factor of {key} is {rope['attention_factor']!r}, but here it "
            f"follows from the factor ({usual:g}); leave it out"
        )
    lengths = (
        config.get("original_max_position_embeddings"),
        rope.get("original_max_position_embeddings"),
        config.get("max_position_embeddings"),
        32_768,  # transformers' default in both families
    )
    length = next(length for length in lengths if length is not None)
    return {**scaled, "rope_length": int(length)}
