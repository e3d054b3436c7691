"""Qwen2, Qwen2.5 and Qwen3 as transformers writes them: `Qwen2ForCausalLM`, `Qwen3ForCausalLM`.

The two differ in what attention adds: Qwen2 biases of query, key and value (`qkv_bias`), Qwen3
norms of queries and keys (`qk_norm`). A tied head is not in the file, or is there once more
(`TWINS`). A model of ours may have a longer vocabulary than the file: see `interop.initial`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
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
MEND = "take a Qwen2, Qwen2.5 or Qwen3 language model without these"


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
    """Tensors that may be there once more: {name: the one it has to equal}."""
    return {HEAD: EMBEDDING} if module.tied_head else {}


def describe(module: Transformer) -> dict[str, Any]:
    """The config.json of `module`, for text alone.

    Raises:
      ValueError: biases and norms of attention as neither family has them, or bounded logits.
    """
    if module.logit_softcap:
        raise ValueError(
            f"Qwen has no bound on its logits, so logit_softcap={module.logit_softcap} would be "
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
        # transformers 5 reads the first, older versions the second.
        "rope_parameters": {"rope_type": "default", "rope_theta": module.rope_theta},
        "rope_theta": module.rope_theta,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def module_of(config: Mapping[str, Any], path: Path) -> Transformer:
    """The transformer that a config.json at `path` describes.

    Raises:
      ConfigError: it is of another kind of model, or of a Qwen that ours cannot stand for.
    """
    family = config.get("model_type")
    if family not in ("qwen2", "qwen3"):
        raise ConfigError(f"{path}: model_type is {family!r}, not qwen2 or qwen3; {MEND}")
    check_fixed(config, FIXED, path, MEND)
    sizes = read_fields(config, FIELDS, path)
    default = 128 if family == "qwen3" else sizes["width"] // sizes["heads"]
    return Transformer(
        **sizes,
        kv_heads=config.get("num_key_value_heads") or sizes["heads"],
        head_dim=config.get("head_dim") or default,
        rope_theta=_rope_theta(config, path),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def _rope_theta(config: Mapping[str, Any], path: Path) -> float:
    """The base of the rotary positions; no stretching of them (YaRN, linear, ...)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConfigError(f"{path}: rotary positions are of type {kind!r}, not 'default'; {MEND}")
    return float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
