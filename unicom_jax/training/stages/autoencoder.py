"""Stage `autoencoder`: a KL autoencoder from pictures, then the statistics of its latents.

    L = λ_l1 · |x - x̂| + λ_kl · KL(q(z|x) ‖ N(0, 1)) + λ_perceptual · perceptual
        + λ_adversarial · w · (- D(x̂))  +  ½ [relu(1 - D(x)) + relu(1 + D(x̂))]

x̂ is decoded from a sample of the posterior, to which `latent_noise` adds more noise
(`stages/codec.py`). The perceptual term compares hidden states of the frozen encoder, as the stage
`codec` does. The last two terms require a discriminator D (hinge losses as in Lim & Ye 2017; Esser
et al. 2021; Rombach et al. 2022) and count after `discriminator.start` steps.

A minimax game usually has two optimisers. Here one optimiser serves both players, with both sets of
weights in one tree. A `stop_gradient` hides D's weights from the fourth term, and x̂ with all that
made it from the fifth, so each weight gets only the gradient of its own player's loss, and Adam
treats each weight separately. The players share only the clipping by the norm of all gradients.
`groups` can give the discriminator its own learning rate. Both are updated at once, on the same
picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.grids import token_mask
from unicom_jax.core.losses import LossTerm, LossTerms, mean
from unicom_jax.core.module import Params
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import (
    build_autoencoder,
    build_discriminator,
    build_encoder,
    build_trained_autoencoder,
    space_of,
)
from unicom_jax.models.extent import Extent
from unicom_jax.models.paint_space import LatentSpace, pack
from unicom_jax.runs.autoencoder import canvas_of
from unicom_jax.training.stages.codec import add_latent_noise, perceptual_loss
from unicom_jax.training.stages.statistics import (
    STATISTICS,
    channel_moments,
    latent_facts,
    with_statistics,
)
from unicom_jax.training.step import Stage

MOST = 1e4  # upper bound of the adaptive weight


def autoencoder_stage(
    name: str, config: Mapping[str, Any], statistics_batches: Callable[[], Iterator[Any]]
) -> Stage:
    """The autoencoder stage.

    `frozen["encoder"]` holds a vision tower's weights if there is a perceptual term.

    Args:
      statistics_batches: training batches of pictures on which latent statistics are measured.
    """
    settings, adversary = config[name], config[name]["discriminator"]
    autoencoder, discriminator = build_autoencoder(config), build_discriminator(config)
    space = space_of(config, autoencoder, canvas_of(config))
    compare = _perceptual(config, settings) if settings["perceptual_weight"] else None
    adaptive = discriminator is not None and adversary["adaptive"]

    def loss(params: Params, frozen: Params, batch: Any, row_keys: jax.Array) -> LossTerms:
        batch = jax.tree.map(lambda x: place(x, PICTURES), batch)
        patches, grids = to_unit(batch.patches), batch.grids
        images, extent = space.to_images(patches, grids), space.extent(grids)
        real = token_mask(grids, patches.shape[1])
        colours = jnp.sum(real.astype(jnp.float32)) * patches.shape[2]

        middle, log_variance = _posterior(space, params, images, extent)
        nats = divergence(space, middle, log_variance, grids, patches.shape[1])
        noise = jax.vmap(lambda key: jax.random.normal(key, middle.shape[1:]))(row_keys)
        latents = middle + jnp.exp(0.5 * log_variance) * noise
        if settings["latent_noise"]:
            latents = noisy_latents(latents, extent, row_keys, settings["latent_noise"])
        features = autoencoder.decoder_features(params, latents.astype(space.compute_dtype), extent)

        def paint(output: Params) -> jax.Array:
            """Applies the decoder's last convolution."""
            return autoencoder.output(output, features, extent).astype(jnp.float32)

        def reconstruction(painted: jax.Array) -> LossTerms:
            rebuilt = space.to_patches(painted, grids, patches.shape[1])
            error = jnp.where(real[..., None], jnp.abs(rebuilt - patches), 0.0)
            terms = {"l1": (jnp.sum(error), colours)}
            if compare is not None:
                terms["perceptual"] = compare(frozen["encoder"], rebuilt, patches, grids)
            return terms

        output = params["decoder"]["conv_out"]
        painted = paint(output)
        terms = {**reconstruction(painted), "kl": (nats, colours)}
        if discriminator is None:
            return terms
        own, held = params["discriminator"], jax.lax.stop_gradient(params["discriminator"])

        def judge(weights: Params, seen: jax.Array) -> jax.Array:
            return discriminator(weights, seen.astype(space.compute_dtype), extent)

        def fooling(painted: jax.Array) -> LossTerm:
            return _summed(-judge(held, painted), extent)

        total, count = fooling(painted)
        if adaptive:
            share = _balance(
                lambda output: _weighted(reconstruction(paint(output)), settings),
                lambda output: mean(fooling(paint(output))),
                output,
            )
            total, terms["adversarial_share"] = share * total, (share, 1.0)
        logits = judge(own, images), judge(own, jax.lax.stop_gradient(painted))
        terms["discriminator"] = _summed(hinge(*logits), extent)
        return {**terms, "adversarial": (total, count)}

    weights = {"l1": settings["l1_weight"], "kl": settings["kl_weight"]}
    if compare is not None:
        weights["perceptual"] = settings["perceptual_weight"]
    starts = {}
    if discriminator is not None:
        weights |= {"adversarial": adversary["weight"], "discriminator": 1.0}
        starts = dict.fromkeys(("adversarial", "discriminator"), adversary["start"])
    return Stage(
        name=name,
        module=build_trained_autoencoder(config),
        loss=loss,
        weights={term: weight for term, weight in weights.items() if weight},
        starts=starts,
        freeze=(STATISTICS, *settings["freeze"]),
        # The adaptive weight and the deviations that scale the noise are the whole batch's.
        rows_are_independent=not (adaptive or settings["latent_noise"]),
        finish=lambda params, frozen: measure_statistics(space, params, statistics_batches()),
        facts=_statistics_facts,
    )


def _perceptual(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Callable[..., LossTerm]:
    """(weights of the tower, reconstruction, true patches, grids) -> the perceptual term."""
    vision, dtype = build_encoder(config).vision, config["compute_dtype"]
    layers = tuple(int(share * vision.depth) for share in settings["perceptual_layers"])

    def compare(
        weights: Params, rebuilt: jax.Array, patches: jax.Array, grids: jax.Array
    ) -> LossTerm:
        def look(seen: jax.Array) -> tuple[jax.Array, ...]:
            return vision.hidden_states(weights, seen.astype(dtype), grids, layers)

        target = jax.lax.stop_gradient(look(patches))
        real = token_mask(grids, patches.shape[1]).astype(jnp.float32)
        return perceptual_loss(look(rebuilt), target, real, settings["perceptual_normalise"])

    return compare


def _posterior(
    space: LatentSpace, params: Params, images: jax.Array, extent: Extent | None
) -> tuple[jax.Array, jax.Array]:
    """Mean and log-variance in fp32."""
    images = images.astype(space.compute_dtype)
    middle, log_variance = space.autoencoder.moments(params, images, extent)
    return middle.astype(jnp.float32), log_variance.astype(jnp.float32)


def noisy_latents(
    latents: jax.Array, extent: Extent | None, row_keys: jax.Array, most: float
) -> jax.Array:
    """Raw latents (B, h, w, c) with the noise of `add_latent_noise`."""
    inside = jnp.ones((*latents.shape[:3], 1)) if extent is None else extent.mask(latents)
    batch, channels = len(latents), latents.shape[-1]
    real = jnp.broadcast_to(inside, (*latents.shape[:3], 1)).reshape(batch, -1)
    tokens = latents.reshape(batch, -1, channels)
    noisy = add_latent_noise(tokens, real.astype(jnp.float32), row_keys, most)
    return noisy.reshape(latents.shape)


def divergence(
    space: LatentSpace,
    middle: jax.Array,
    log_variance: jax.Array,
    grids: jax.Array,
    tokens: int,
) -> jax.Array:
    """KL(N(middle, exp log_variance) ‖ N(0, 1)) in nats, over all latents of all pictures."""
    nats = 0.5 * (jnp.square(middle) + jnp.exp(log_variance) - 1.0 - log_variance)
    return jnp.sum(space.take_up(pack(nats, space.side), grids, tokens))


def _weighted(terms: LossTerms, settings: Mapping[str, Any]) -> jax.Array:
    return sum(settings[f"{name}_weight"] * mean(term) for name, term in terms.items())


def _summed(values: jax.Array, extent: Extent | None) -> LossTerm:
    """The loss term over the places (B, h, w, 1) that belong to pictures."""
    inside = jnp.ones(values.shape) if extent is None else extent.mask(values)
    return jnp.sum(jnp.where(inside, values.astype(jnp.float32), 0.0)), jnp.sum(inside)


def hinge(real: jax.Array, painted: jax.Array) -> jax.Array:
    """½ [relu(1 - real) + relu(1 + painted)] of logits."""
    return 0.5 * (jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + painted))


def _balance(
    reconstruction: Callable[[Params], jax.Array],
    adversarial: Callable[[Params], jax.Array],
    output: Params,
) -> jax.Array:
    """‖∂ reconstruction‖ / ‖∂ adversarial‖ at the kernel of the last convolution (Esser et al.
    2021, equation 7), a scalar without gradient."""

    def size(loss: Callable[[Params], jax.Array]) -> jax.Array:
        return jnp.linalg.norm(jax.grad(loss)(output)["kernel"].astype(jnp.float32))

    share = size(reconstruction) / (size(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(share, 0.0, MOST))


def measure_statistics(space: LatentSpace, params: Params, batches: Iterator[Any]) -> Params:
    """`params` with mean and variance of every packed channel over the real tokens of `batches`.

    They are those of the posterior's means, which are what models draw.

    Raises:
      ValueError: a channel never varies.
    """

    @jax.jit
    def latents_of(params: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
        patches, grids = to_unit(batch.patches), batch.grids
        images, extent = space.to_images(patches, grids), space.extent(grids)
        raw = pack(_posterior(space, params, images, extent)[0], space.side)
        tokens = space.take_up(raw, grids, patches.shape[1])
        return tokens, token_mask(grids, patches.shape[1])

    mean, variance = channel_moments(
        (latents_of(params, batch) for batch in batches),
        "train the autoencoder longer or lower autoencoder.latent_channels",
    )
    return with_statistics(params, {"mean": mean, "variance": variance})


def _statistics_facts(params: Params) -> dict[str, list[float]]:
    statistics = jax.device_get(params["statistics"])
    return latent_facts(statistics["mean"], np.sqrt(statistics["variance"]))
