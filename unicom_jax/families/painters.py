"""The pixel decoder that a configuration asks for, with each kind's sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unicom_jax.models.flow_decoder import FlowDecoder
from unicom_jax.models.flux import FluxTransformer
from unicom_jax.models.flux_decoder import FluxDecoder
from unicom_jax.models.mmdit import MMDiT
from unicom_jax.models.mmdit_decoder import MMDiTDecoder
from unicom_jax.models.paint_space import LatentSpace, PaintSpace
from unicom_jax.models.pixel_decoder import PixelDecoder

Config = Mapping[str, Any]
DECODERS = ("dit", "flux", "sd3")  # kinds of pixel decoders
# Those whose network diffusers has too: their kind, which is also the name of its layout.
RELEASED: dict[type[FlowDecoder], str] = {FluxDecoder: "flux", MMDiTDecoder: "sd3"}


def build_decoder(config: Config, space: PaintSpace, feature_dim: int) -> FlowDecoder:
    """The pixel decoder of `codec.decoder`, which paints in `space`.

    Raises:
      ValueError: an unknown kind, or one that does not suit the space.
    """
    sizes = dict(config["codec"]["decoder"])
    kind, flux, sd3 = sizes.pop("kind"), dict(sizes.pop("flux")), dict(sizes.pop("sd3"))
    del sizes["init_from"]  # where weights come from does not affect sizes
    if kind == "dit":
        return PixelDecoder(
            channels=space.channels,
            feature_dim=feature_dim,
            compute_dtype=config["compute_dtype"],
            **sizes,
        )
    if kind not in DECODERS:
        raise ValueError(f"codec.decoder.kind={kind!r} is not one of {', '.join(DECODERS)}")
    if not isinstance(space, LatentSpace):
        raise ValueError(
            f"codec.decoder.kind={kind} paints latents; set codec.autoencoder.path to the folder "
            "of its autoencoder, or codec.decoder.kind=dit"
        )
    if kind == "sd3":
        return _build_mmdit(sd3, space, feature_dim, config["compute_dtype"])
    if flux["channels"] != space.channels:
        raise ValueError(
            f"codec.decoder.flux.channels={flux['channels']}, but a token has {space.channels}: "
            f"data.patch={space.patch} over this autoencoder; make them equal (FLUX: patch 16, 64)"
        )
    guidance = flux.pop("guidance")
    flux["rope_dims"] = tuple(flux["rope_dims"])
    transformer = FluxTransformer(out_channels=flux["channels"], **flux)
    return FluxDecoder(
        transformer=transformer,
        feature_dim=feature_dim,
        guidance=guidance,
        compute_dtype=config["compute_dtype"],
    )


def _build_mmdit(
    sizes: dict[str, Any], space: LatentSpace, feature_dim: int, compute_dtype: str
) -> MMDiTDecoder:
    """Stable Diffusion 3 for the tokens of `space`; `sizes`: `codec.decoder.sd3`."""
    latents = {"latent_channels": space.autoencoder.latent_channels, "patch": space.side}
    transformer = MMDiT(**latents, **sizes)
    transformer.check_grid(space.rows, space.cols, "codec.decoder.sd3.position_side")
    return MMDiTDecoder(
        transformer=transformer, feature_dim=feature_dim, compute_dtype=compute_dtype
    )


def decoder_group(config: Config) -> str:
    """The configuration group with the sizes of the pixel decoder's network."""
    kind = config["codec"]["decoder"]["kind"]
    return "codec.decoder" if kind == "dit" else f"codec.decoder.{kind}"
