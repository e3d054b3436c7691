"""What both pathways share: images become sequence vectors, and a batch becomes loss terms."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key, Shaped

from unicom_jax.core.batch import MixedBatch, Role
from unicom_jax.core.flow import interpolate, sample_time, velocity
from unicom_jax.core.layers import Linear, Mlp, TimeEmbedding, at_slots, place_embedding
from unicom_jax.core.module import Module, Params, Specs

UNDERSTANDING = ("features", "latents", "channel_concat", "sequence_concat")


@dataclasses.dataclass(frozen=True)
class FlowTime:
    """How training draws the flow time: `core.flow.sample_time`'s choices."""

    kind: str = "uniform"
    shift: float = 1.0


@dataclasses.dataclass(frozen=True)
class ImageEmbedding(Module):
    """Sequence vectors of image slots.

    UNDERSTAND slots hold a two-layer projection of what `understanding` names: the encoder's
    `features`, the codec's `latents`, both joined along channels (`channel_concat`), or both one
    after the other (`sequence_concat`: the UNDERSTAND slots hold features and CLEAN slots follow).
    CLEAN and NOISY slots hold a linear map of the latents plus an embedding of their flow time
    (t = 1 for clean ones), so a clean image is the end point of the noisy one's path. All of them
    are told their row and column (as in BAGEL): rotary positions alone only say how far apart two
    slots are, and a noisy token knows nothing else of its place.

    `pool`: patches on a side of a latent's window.
    """

    feature_dim: int
    latent_dim: int
    width: int
    understanding: str = "features"
    pool: int = 1

    def __post_init__(self) -> None:
        if self.understanding not in UNDERSTANDING:
            raise ValueError(
                f"unified.understanding={self.understanding!r} is not one of "
                f"{', '.join(UNDERSTANDING)}"
            )

    @property
    def projector(self) -> Mlp:
        in_dim = {
            "latents": self.latent_dim,
            "channel_concat": self.feature_dim + self.latent_dim,
        }.get(self.understanding, self.feature_dim)
        return Mlp(in_dim, self.width, self.width)

    @property
    def latent_in(self) -> Linear:
        return Linear(self.latent_dim, self.width, axes=("latent", "embed"))

    @property
    def time(self) -> TimeEmbedding:
        return TimeEmbedding(self.width)

    def specs(self) -> Specs:
        return {
            "projector": self.projector.specs(),
            "latent_in": self.latent_in.specs(),
            "time": self.time.specs(),
        }

    def understood(
        self,
        params: Params,
        features: Float[Array, "*B {self.feature_dim}"],
        latents: Float[Array, "*B {self.latent_dim}"],
    ) -> Float[Array, "*B {self.width}"]:
        """Projects raw features and clean latents of a slot."""
        inputs = {
            "latents": lambda: latents,
            "channel_concat": lambda: jnp.concatenate([features, latents], axis=-1),
        }.get(self.understanding, lambda: features)()
        return self.projector(params["projector"], inputs)

    def latent(
        self,
        params: Params,
        latents: Float[Array, "*B {self.latent_dim}"],
        time: Float[Array, " ..."],
        which: Int[Array, "*B"] | None = None,
    ) -> Float[Array, "*B {self.width}"]:
        """Embeds latents at their flow time; `time` and `which` as for `at_slots`."""
        when = at_slots(self.time(params["time"], time), which)
        return self.latent_in(params["latent_in"], latents) + when

    def places(self, batch: MixedBatch) -> Int[Array, "B S 2"]:
        """(row, column) in its image of every image slot."""
        columns = jnp.take_along_axis(batch.grids[..., 1], batch.image_index, axis=1)
        pooled = (batch.roles != Role.UNDERSTAND) | (self.understanding == "latents")
        columns = jnp.maximum(jnp.where(pooled, columns // self.pool, columns), 1)
        return jnp.stack([batch.image_token // columns, batch.image_token % columns], axis=-1)


def gather_slots(images: Shaped[Array, "B M n c"], batch: MixedBatch) -> Shaped[Array, "B S c"]:
    """Reads per-image arrays at every sequence slot.

    Along each row, so that devices which hold other rows exchange nothing.
    """
    tokens = images.shape[2]
    flat = images.reshape(len(images), -1, images.shape[3])
    index = batch.image_index * tokens + batch.image_token
    return jnp.take_along_axis(flat, index[..., None], axis=1)


def slot_times(
    time: Float[Array, "B M"], batch: MixedBatch
) -> tuple[Float[Array, "B M+1"], Int[Array, "B S"]]:
    """The few flow times that a row knows, the last one 1, and which of them each slot has.

    `time` is that of the images' NOISY slots; all other slots are at 1.
    """
    times = jnp.pad(time, ((0, 0), (0, 1)), constant_values=1.0)
    return times, jnp.where(batch.roles == Role.NOISY, batch.image_index, time.shape[1])


def scatter_images(
    slots: Float[Array, "B S c"], batch: MixedBatch, images: tuple[int, int]
) -> Float[Array, "B {images[0]} {images[1]} c"]:
    """Writes the NOISY slots back to per-image arrays; zero elsewhere."""
    drawn = jnp.where((batch.roles == Role.NOISY)[..., None], slots, 0)

    def write(drawn: jax.Array, index: jax.Array, token: jax.Array) -> jax.Array:
        empty = jnp.zeros((*images, slots.shape[-1]), slots.dtype)
        return empty.at[index, token].add(drawn)

    return jax.vmap(write)(drawn, batch.image_index, batch.image_token)


def embed_slots(
    embedding: ImageEmbedding,
    params: Params,
    text: Float[Array, "B S W"],
    batch: MixedBatch,
    features: Float[Array, "B S F"],
    latents: Float[Array, "B S d"],
    time: Float[Array, "B M"],
) -> Float[Array, "B S W"]:
    """The input vectors of all slots.

    Args:
      text: embedded tokens.
      features: raw features at each slot.
      latents: latents at each slot, noisy ones where the role is NOISY.
      time: flow time of each image's NOISY slots; CLEAN ones are at 1.
    """
    roles = batch.roles[..., None]
    understood = embedding.understood(
        params, features.astype(text.dtype), latents.astype(text.dtype)
    )
    times, which = slot_times(time, batch)
    painted = embedding.latent(params, latents.astype(text.dtype), times, which).astype(text.dtype)
    image = jnp.where(roles == Role.UNDERSTAND, understood, painted)
    image = image + place_embedding(embedding.places(batch), embedding.width).astype(text.dtype)
    return jnp.where(roles > Role.TEXT, image, text)


@dataclasses.dataclass(frozen=True)
class NoisySlots:
    """One draw of noise for a batch: latents on the path, their time and the velocity to learn."""

    latents: Float[Array, "B S d"]
    image_time: Float32[Array, "B M"]
    time: Float32[Array, "B S"]  # 1 where the role is not NOISY
    target: Float[Array, "B S d"]
    weights: Float32[Array, "B S"]  # 1 at NOISY slots


def draw_noise(
    shape: tuple[int, ...], row_keys: Key[Array, " B"], flow_time: FlowTime
) -> tuple[Float32[Array, "B M"], Float32[Array, "B M n d"]]:
    """A time per image and noise for rows of latents of `shape` (M, n, d).

    One key a row, so that the draw does not depend on how rows are spread over devices or
    accumulation steps.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        time_key, noise_key = jax.random.split(key)
        time = sample_time(time_key, shape[:1], flow_time.kind, shift=flow_time.shift)
        return time, jax.random.normal(noise_key, shape, jnp.float32)

    return jax.vmap(draw)(row_keys)


def add_noise(
    batch: MixedBatch,
    latents: Float[Array, "B M n d"],
    row_keys: Key[Array, " B"],
    flow_time: FlowTime,
) -> NoisySlots:
    """Puts every drawn image of the batch, its clean normalised latents, at a time of its own."""
    image_time, noise = draw_noise(latents.shape[1:], row_keys, flow_time)
    clean, noise = gather_slots(latents, batch), gather_slots(noise, batch)
    time = at_slots(*slot_times(image_time, batch))
    return NoisySlots(
        latents=interpolate(clean, noise, time[..., None]),  # t = 1 leaves clean slots clean
        image_time=image_time,
        time=time,
        target=velocity(clean, noise),
        weights=(batch.roles == Role.NOISY).astype(jnp.float32),
    )
