"""UAE: a caption is all that the drawer sees of a picture (arXiv 2509.09666).

    prepare    frozen autoencoder: packed, normalised latents
    looked_at  pixels ─ Qwen2.5-VL's image tower ─ slots
    condition  last hidden states of the words before a picture ─ connector ─ context tokens
    velocity   z_t ─ MM-DiT of Stable Diffusion 3, with that context

To draw, the language model reads a text from its beginning, without the picture that the text
describes, so no hidden state that reaches the MM-DiT depends on that picture. The slots of a drawn
picture hold zeros, no other slot attends to them, and their hidden states are not used.

A stage with a flow loss trains the connector and the MM-DiT and keeps the reader frozen (decoder
pre-training); a stage without one trains the language model. The image tower is never trained,
because in the paper captions collapsed when it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key, UInt8

from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.module import Params, Specs
from unicom_jax.core.scopes import in_module
from unicom_jax.families.autoencoded import Latents, encode_pictures, pictures_in
from unicom_jax.families.images import Context, FlowTime, ImageModel, Noised, noise_draws
from unicom_jax.families.slots import picture_rows
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.models.mmdit import MMDiT
from unicom_jax.models.mmdit_decoder import MMDiTDecoder
from unicom_jax.models.paint_space import image_of, patches_of
from unicom_jax.models.qwen_vision import QwenVision

PATHWAY = "uae"


@flax.struct.dataclass
class Seen:
    """Patches of pixels, for the tower, and latents. `grids`: rows and columns of patches."""

    patches: UInt8[Array, "B M N C"]
    grids: Int[Array, "B M 2"]
    drawn: Latents


@flax.struct.dataclass
class Words:
    """Context tokens of each draw, and how many they are; later ones are padding."""

    tokens: Float[Array, "B draws T F"]
    lengths: Int[Array, "B draws"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UaeImages(ImageModel):
    """The image side of UAE.

    Attributes:
      vision: the image tower; a slot holds `merge` patches along each side.
      codec: the frozen autoencoder's, which only `prepare` runs.
      decoder: connector and MM-DiT; its context is hidden states.
      compute_dtype: type of the tower; norms, times, modulation and velocities are fp32.
    """

    vision: QwenVision
    codec: AutoencoderCodec
    decoder: MMDiTDecoder
    flow_time: FlowTime = FlowTime()
    compute_dtype: str = "float32"

    reads_noise = False
    reads_context = True

    @property
    def slot_patches(self) -> int:
        return self.vision.merge

    def specs(self) -> Specs:
        return {"vision": self.vision.specs(), "decoder": self.decoder.specs()}

    def frozen(self, *, draws: bool) -> tuple[str, ...]:
        if not draws:
            return ("vision/.*", "decoder/.*")
        return ("vision/.*", "transformer/.*", *(f"decoder/{p}" for p in self.decoder.untrained))

    def shape_of(self, slots: int) -> tuple[int, int]:
        return slots * self.slot_patches**2, self.codec.latent_dim

    def prepare(self, frozen: Params, batch: MixedBatch) -> Seen:
        """Latents by `frozen["autoencoder"]`."""
        drawn = encode_pictures(self.codec, frozen, batch, PATHWAY)
        return Seen(pictures_in(batch, PATHWAY), batch.grids, drawn)

    def noise(
        self, prepared: Seen, draws: Int[Array, "B draws"], row_keys: Key[Array, " B"]
    ) -> Noised:
        drawn = prepared.drawn
        return noise_draws(drawn.latents, drawn.grids, draws, row_keys, self.flow_time)

    def looked_at(
        self, params: Params, prepared: Seen
    ) -> tuple[Float[Array, "B M s W"], Float[Array, "B M s W"]]:
        grids = picture_rows(prepared.grids)
        patches = self._resized(picture_rows(prepared.patches))
        patches = self.vision.prepare(patches, grids).astype(self.compute_dtype)
        seen = self.vision(params["vision"], patches, grids)
        seen = seen.reshape(*prepared.grids.shape[:2], *seen.shape[1:])
        return seen, seen

    def _resized(self, patches: UInt8[Array, "B N C"]) -> UInt8[Array, "B N c"]:
        """Patches of the tower's size: whole pictures are scaled to the same number of patches."""
        space, side = self.codec.space, self.vision.patch_size
        if space.patch == side:
            return patches
        images = image_of(patches.astype(jnp.float32), space.rows, space.cols, space.patch)
        shape = (len(images), space.rows * side, space.cols * side, images.shape[-1])
        scaled = jax.image.resize(images, shape, "cubic", antialias=True)
        scaled = jnp.round(jnp.clip(scaled, 0.0, 255.0)).astype(jnp.uint8)
        return patches_of(scaled, side)

    def drawn(self, params: Params, noised: Noised) -> tuple[Float[Array, "B draws s W"], None]:
        """Zeros, since no slot attends to those of a drawn picture."""
        del params
        slots = noised.noisy.shape[2] // self.slot_patches**2
        return jnp.zeros((*noised.time.shape, slots, self.vision.out_dim), self.compute_dtype), None

    @in_module("connector")
    def condition(self, params: Params, hidden: Context, grids: Int[Array, "B draws 2"]) -> Words:
        del grids
        return Words(self.decoder.connect(params["decoder"], hidden.states), hidden.lengths)

    def velocity(
        self, params: Params, condition: Words, noised: Noised, aux: None
    ) -> Float32[Array, "B draws n d"]:
        del aux
        words = condition.tokens, condition.lengths
        inputs = map(picture_rows, (noised.noisy, noised.time, *words, noised.grids))
        return self.decoder.speed(params["decoder"], *inputs).reshape(noised.noisy.shape)


def make_uae(
    unified: Mapping[str, Any], *, width: int, codec: AutoencoderCodec, compute_dtype: str
) -> UaeImages:
    """The image side that `config.unified` describes, for a transformer of `width`.

    Raises:
      ValueError: pictures have several sizes, which the tower's resizing does not support, or the
        network is to predict something else than velocities.
    """
    space, sizes = codec.space, unified["uae"]
    if space.ragged:
        raise ValueError(
            f"unified.pathway={PATHWAY} reads and draws pictures of one size; set data.policy=fixed"
        )
    if unified["prediction"] != "velocity":
        raise ValueError(
            f"unified.prediction={unified['prediction']}: unified.pathway={PATHWAY} predicts "
            "velocities; set it to velocity"
        )
    vision, decoder = dict(sizes["vision"]), dict(sizes["decoder"])
    del decoder["init_from"]  # where weights come from does not affect sizes
    vision["whole_layers"] = tuple(vision["whole_layers"])
    transformer = MMDiT(
        latent_channels=space.autoencoder.latent_channels, patch=space.side, **decoder
    )
    transformer.check_grid(space.rows, space.cols, "unified.uae.decoder.position_side")
    return UaeImages(
        vision=QwenVision(out_dim=width, merge=unified["fold"], **vision),
        codec=codec,
        decoder=MMDiTDecoder(
            transformer=transformer, feature_dim=width, compute_dtype=compute_dtype
        ),
        flow_time=FlowTime(unified["time"], unified["time_shift"]),
        compute_dtype=compute_dtype,
    )
