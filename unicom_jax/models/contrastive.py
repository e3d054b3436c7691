"""SigLIP (arXiv 2303.15343): image and text towers under a sigmoid loss over all pairs."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.layers import Linear
from unicom_jax.core.losses import LossTerm
from unicom_jax.core.module import Module, Params, ParamSpec, Specs
from unicom_jax.models.text_encoder import TextEncoder
from unicom_jax.models.vision_encoder import VisionEncoder


def unit_norm(x: Float[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """x / |x| over the last axis; a zero vector stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-24))


def pair_logits(
    images: Float32[Array, "images W"],
    texts: Float32[Array, "texts W"],
    scale: Float32[Array, ""],
    bias: Float32[Array, ""],
) -> Float32[Array, "images texts"]:
    """exp(scale) * images @ texts.T + bias, for unit vectors."""
    similarity = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.exp(scale) * similarity + bias


def sigmoid_loss(
    images: Float32[Array, "B W"],
    texts: Float32[Array, "B W"],
    scale: Float32[Array, ""],
    bias: Float32[Array, ""],
    *,
    chunk: int | None = None,
) -> LossTerm:
    """-log sigmoid(±logit) summed over all pairs (i, j), with + where i == j.

    Args:
      images, texts: of unit norm.
      scale: log of the inverse temperature.
      chunk: number of images processed at a time, a divisor of B; memory is then O(chunk * B)
        instead of O(B * B), in the backward pass too. The values are the same.

    Returns:
      (sum, count); sum / count is the paper's loss, a mean over images of sums over texts.

    Raises:
      ValueError: the numbers of images and texts differ, or `chunk` does not divide B.
    """
    batch = images.shape[0]
    if texts.shape[0] != batch:
        raise ValueError(
            f"{batch} images but {texts.shape[0]} texts; the loss needs one text per image"
        )
    chunk = chunk or batch
    if batch % chunk:
        raise ValueError(f"chunk {chunk} does not divide the batch of {batch}; take a divisor")

    @jax.checkpoint
    def rows(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        index, some_images = block
        sign = jnp.where(index[:, None] == jnp.arange(batch), 1.0, -1.0)
        return total + jax.nn.softplus(
            -sign * pair_logits(some_images, texts, scale, bias)
        ).sum(), None

    blocks = jnp.arange(batch).reshape(-1, chunk), images.reshape(-1, chunk, images.shape[-1])
    total, _ = jax.lax.scan(rows, jnp.zeros((), jnp.float32), blocks)
    return total, jnp.asarray(batch, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Contrastive(Module):
    """Both towers, a learned temperature and a learned bias.

    `logit_scale` starts at log 10 and `logit_bias` at -10 (§3.2), since nearly all pairs are
    negatives. `pixel_head`: one linear layer also predicts each patch's pixels from its feature.
    The sigmoid loss demands nothing of single patches; SigLIP 2 adds dense objectives for that
    (arXiv 2502.14786 §2.2), and this is the simplest one that keeps what a codec needs.
    """

    vision: VisionEncoder
    text: TextEncoder
    pixel_head: bool = False

    def __post_init__(self) -> None:
        out_dim = self.text.out_dim or self.text.width
        if out_dim != self.vision.width:
            raise ValueError(
                f"text embeddings of {out_dim} cannot meet image embeddings of "
                f"{self.vision.width}; set the text tower's out_dim to {self.vision.width}"
            )

    @property
    def pixels(self) -> Linear:
        return Linear(self.vision.width, self.vision.patch_dim, axes=("embed", None))

    def specs(self) -> Specs:
        pixels = {"pixels": self.pixels.specs()} if self.pixel_head else {}
        return pixels | {
            "vision": self.vision.specs(),
            "text": self.text.specs(),
            "logit_scale": ParamSpec((), (), jax.nn.initializers.constant(math.log(10.0))),
            "logit_bias": ParamSpec((), (), jax.nn.initializers.constant(-10.0)),
        }

    def embed_images(
        self, params: Params, patches: Float[Array, "B N C"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B W"]:
        """Vectors of unit norm."""
        features = self.vision(params["vision"], patches, grids)
        return unit_norm(self.vision.pool(params["vision"], features, grids))

    def embed_texts(
        self, params: Params, tokens: Int[Array, "B S"], lengths: Int[Array, " B"] | None = None
    ) -> Float32[Array, "B W"]:
        """Vectors of unit norm."""
        return unit_norm(self.text(params["text"], tokens, lengths))

    def __call__(
        self,
        params: Params,
        patches: Float[Array, "images N C"],
        grids: Int[Array, "images 2"],
        tokens: Int[Array, "texts S"],
        lengths: Int[Array, " texts"] | None = None,
    ) -> Float32[Array, "images texts"]:
        """Logits of every image against every text. Arguments as for the two towers."""
        images = self.embed_images(params, patches, grids)
        texts = self.embed_texts(params, tokens, lengths)
        return pair_logits(images, texts, params["logit_scale"], params["logit_bias"])

    def loss(
        self,
        params: Params,
        patches: Float[Array, "B N C"],
        grids: Int[Array, "B 2"],
        tokens: Int[Array, "B S"],
        lengths: Int[Array, " B"] | None = None,
        *,
        chunk: int | None = None,
    ) -> LossTerm:
        """(sum, count) of `sigmoid_loss` where text i belongs to image i."""
        images = self.embed_images(params, patches, grids)
        texts = self.embed_texts(params, tokens, lengths)
        return sigmoid_loss(images, texts, params["logit_scale"], params["logit_bias"], chunk=chunk)
