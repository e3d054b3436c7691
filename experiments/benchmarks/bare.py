"""The same step in raw jax.numpy, as one would write it in an afternoon. The floor for ours.

It reads the weights of `ours`, so that a test can hold the two losses and gradients together.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.race import Contestant
from experiments.benchmarks.standard import (
    CLIP_NORM,
    FLOW_WEIGHT,
    LEARNING_RATE,
    TEXT_WEIGHT,
    WEIGHT_DECAY,
    Standard,
)
from unicom_jax.core.positions import image_positions

ROPE_THETA, EPS = 1e6, 1e-6


def rms_norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS) * scale


def rotate(x, cos, sin):
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def rope_table(sizes: Standard) -> tuple[np.ndarray, np.ndarray]:
    text = np.arange(sizes.text_tokens)
    image = image_positions(sizes.text_tokens, sizes.grid, sizes.grid)
    positions = np.concatenate([np.stack([text, text], -1), image])
    index = np.arange(sizes.head_dim // 2)
    axis = index % 2  # even frequencies turn with y, odd ones with x
    angles = positions[:, axis] * ROPE_THETA ** (-2.0 * index / sizes.head_dim)
    return np.cos(angles)[:, None].astype(np.float32), np.sin(angles)[:, None].astype(np.float32)


def time_embedding(params, time, frequencies):
    half = frequencies // 2
    rates = jnp.exp(-math.log(10_000.0) * jnp.arange(half) / half)
    angles = 1000.0 * time[:, None] * rates
    x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
    x = jax.nn.silu(x @ params["up"]["kernel"] + params["up"]["bias"])
    return x @ params["down"]["kernel"] + params["down"]["bias"]


def make_loss(sizes: Standard):
    """(params, tokens, latents, time (B,), noise) -> scalar loss."""
    cos, sin = rope_table(sizes)
    visible, places = sizes.visible(), sizes.places()
    groups = sizes.heads // sizes.kv_heads

    def attend(p, x):
        shape = (*x.shape[:2], -1, sizes.head_dim)
        q = (x @ p["query"]["kernel"]).reshape(shape)
        k = (x @ p["key"]["kernel"]).reshape(shape)
        v = (x @ p["value"]["kernel"]).reshape(shape)
        q = rotate(rms_norm(q, p["query_norm"]["scale"]), cos, sin)
        k = rotate(rms_norm(k, p["key_norm"]["scale"]), cos, sin)
        q = q.reshape(*q.shape[:2], sizes.kv_heads, groups, sizes.head_dim)
        scores = jnp.einsum("bskgd,btkd->bkgst", q, k) * sizes.head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), -1)
        mixed = jnp.einsum("bkgst,btkd->bskgd", weights, v)
        return mixed.reshape(x.shape[0], x.shape[1], -1) @ p["out"]["kernel"]

    def block(x, p):
        x = x + attend(p["attention"], rms_norm(x, p["attention_norm"]["scale"]))
        h = rms_norm(x, p["mlp_norm"]["scale"])
        gate, up, down = (p["mlp"][name]["kernel"] for name in ("gate", "up", "down"))
        return x + (jax.nn.silu(h @ gate) * (h @ up)) @ down, None

    def loss(params, tokens, latents, time, noise):
        table = params["transformer"]["embedding"]["table"]
        enter = params["embedding"]
        t = time[:, None, None]
        noisy = t * latents + (1 - t) * noise
        image = noisy @ enter["latent_in"]["kernel"] + enter["latent_in"]["bias"]
        image = image + time_embedding(enter["time"], time, sizes.time_frequencies)[:, None]
        image = image + places
        x = jnp.concatenate([table[tokens], image], 1)
        x, _ = jax.lax.scan(block, x, params["transformer"]["blocks"])
        x = rms_norm(x, params["transformer"]["norm"]["scale"])

        logits = x[:, : sizes.text_tokens - 1] @ table.T
        text = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
        out = params["head"]["output"]
        velocity = x[:, sizes.text_tokens :] @ out["kernel"] + out["bias"]
        flow = jnp.square(velocity - (latents - noise)).mean()
        return FLOW_WEIGHT * flow + TEXT_WEIGHT * text

    return loss


def contestant(sizes: Standard, params, target: float) -> Contestant:
    """Bare JAX from the given weights (copied; the weights that this step never reads are left)."""
    loss = make_loss(sizes)
    used = {**params, "embedding": {k: params["embedding"][k] for k in ("latent_in", "time")}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
    )

    def step(params, opt_state, key, tokens, latents):
        key, time_key, noise_key = jax.random.split(key, 3)
        time = jax.random.uniform(time_key, latents.shape[:1])
        noise = jax.random.normal(noise_key, latents.shape)
        value, grads = jax.value_and_grad(loss)(params, tokens, latents, time, noise)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, key, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    used = jax.tree.map(jnp.array, used)
    state = [used, optimizer.init(used), jax.random.key(0)]
    tokens, latents = jnp.asarray(sizes.tokens()), jnp.asarray(sizes.latents())

    def run() -> float:
        *state[:], value = compiled(*state, tokens, latents)
        return float(jax.block_until_ready((state, value))[1])

    return Contestant("bare JAX", run, sum(x.size for x in jax.tree.leaves(used)), target)
