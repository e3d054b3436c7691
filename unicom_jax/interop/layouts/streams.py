"""Names of an MM-DiT's blocks and embeddings in diffusers, as in FLUX and Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from unicom_jax.core.module import Module, iter_specs
from unicom_jax.interop.mapping import Rule, linear, norm

# ours -> theirs, each with kernel and bias
EMBEDDINGS = {
    "time/up": "time_text_embed.timestep_embedder.linear_1",
    "time/down": "time_text_embed.timestep_embedder.linear_2",
    "pooled/up": "time_text_embed.text_embedder.linear_1",
    "pooled/down": "time_text_embed.text_embedder.linear_2",
    "context": "context_embedder",
}
OUTPUT = {"modulation": "norm_out.linear", "output": "proj_out"}
# A block of two streams, where it has them.
LINEARS = {
    "image/modulation": "norm1.linear",
    "image/attention/query": "attn.to_q",
    "image/attention/key": "attn.to_k",
    "image/attention/value": "attn.to_v",
    "image/output": "attn.to_out.0",
    "image/own_attention/query": "attn2.to_q",
    "image/own_attention/key": "attn2.to_k",
    "image/own_attention/value": "attn2.to_v",
    "image/own_output": "attn2.to_out.0",
    "image/mlp/up": "ff.net.0.proj",
    "image/mlp/down": "ff.net.2",
    "context/modulation": "norm1_context.linear",
    "context/attention/query": "attn.add_q_proj",
    "context/attention/key": "attn.add_k_proj",
    "context/attention/value": "attn.add_v_proj",
    "context/output": "attn.to_add_out",
    "context/mlp/up": "ff_context.net.0.proj",
    "context/mlp/down": "ff_context.net.2",
}
NORMS = {
    "image/attention/query_norm": "attn.norm_q",
    "image/attention/key_norm": "attn.norm_k",
    "image/own_attention/query_norm": "attn2.norm_q",
    "image/own_attention/key_norm": "attn2.norm_k",
    "context/attention/query_norm": "attn.norm_added_q",
    "context/attention/key_norm": "attn.norm_added_k",
}


def linears(names: Mapping[str, str], ours: str = "", theirs: str = "") -> Iterator[Rule]:
    """Rules for linear layers with biases."""
    for name, foreign in names.items():
        yield from linear(f"{ours}{name}", f"{theirs}{foreign}")


def scales(names: Mapping[str, str], ours: str, theirs: str) -> Iterator[Rule]:
    """Rules for norms without biases."""
    for name, foreign in names.items():
        yield from norm(f"{ours}{name}", f"{theirs}{foreign}", bias=False)


def block(module: Module, ours: str, theirs: str) -> Iterator[Rule]:
    """Rules for the weights of `module`, a block of two streams."""
    held = {"/".join(path[:-1]) for path, _ in iter_specs(module.specs())}
    yield from linears({k: v for k, v in LINEARS.items() if k in held}, ours, theirs)
    yield from scales({k: v for k, v in NORMS.items() if k in held}, ours, theirs)
