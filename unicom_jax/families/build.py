"""Modules from a configuration, and the table of families.

What a family's image side is made of is in the family's own file (`make_cheers`, `make_unicom`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from unicom_jax.core.image_policies import SQUARE
from unicom_jax.families.cheers import make_cheers
from unicom_jax.families.family import Family, Subtree
from unicom_jax.families.images import ImageModel
from unicom_jax.families.painters import build_decoder
from unicom_jax.families.tuned import tuned_config
from unicom_jax.families.uae import make_uae
from unicom_jax.families.unicom import make_unicom
from unicom_jax.families.unicom_query import make_query
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.models.autoencoder import (
    KINDS,
    Autoencoder,
    AutoencoderKL,
    AutoencoderKLFlux2,
)
from unicom_jax.models.codec import Codec
from unicom_jax.models.compressor import make_compressor, make_decompressor
from unicom_jax.models.contrastive import Contrastive
from unicom_jax.models.latent_codec import AutoencoderCodec, LatentCodec
from unicom_jax.models.paint_space import LatentSpace, PaintSpace, PixelSpace
from unicom_jax.models.patch_discriminator import AdversarialAutoencoder, PatchDiscriminator
from unicom_jax.models.text_encoder import TextEncoder
from unicom_jax.models.transformer import Transformer
from unicom_jax.models.vision_encoder import VisionEncoder

Config = Mapping[str, Any]


def grid_side(config: Config) -> int:
    """Patches along a side of a picture of `data.image_size`."""
    return config["data"]["image_size"] // config["data"]["patch"]


def build_encoder(config: Config) -> Contrastive:
    """The SigLIP pair of `config.encoder`; only its vision tower is used after its stage."""
    encoder = config["encoder"]
    side = 16 if encoder["naflex"] else grid_side(config)
    vision = VisionEncoder(
        patch_size=config["data"]["patch"],
        position_rows=side,
        position_cols=side,
        naflex=encoder["naflex"],
        **encoder["vision"],
    )
    text = TextEncoder(
        vocab_size=config["data"]["vocab_size"],
        out_dim=vision.width,
        dtype=config["compute_dtype"],
        **encoder["text"],
    )
    return Contrastive(vision, text, pixel_head=encoder["pixel_weight"] > 0)


def autoencoder_path(config: Config) -> str:
    """`codec.autoencoder.path`; "" means pixels."""
    return config["codec"]["autoencoder"]["path"]


def build_space(config: Config) -> PaintSpace:
    """The pixel decoder's paint space: pixels, or latents of `config.codec.autoencoder`."""
    patch = config["data"]["patch"]
    if not (path := autoencoder_path(config)):
        return PixelSpace(patch)
    facts = config["codec"]["autoencoder"]["facts"]
    if not facts:
        raise ValueError(
            f"codec.autoencoder.path={path} was not read yet; call adopt_autoencoder of "
            "unicom_jax.runs.autoencoder, as a run does when it starts"
        )
    sizes = {**facts["sizes"], "widths": tuple(facts["sizes"]["widths"])}
    backend = config["codec"]["autoencoder"]["attention_backend"]
    kind = KINDS[facts.get("kind", AutoencoderKL.__name__)]  # older runs have no kind
    autoencoder = kind(**{**sizes, "attention_backend": backend})
    return space_of(config, autoencoder, facts["canvas"])


def space_of(config: Config, autoencoder: Autoencoder, canvas: tuple[int, int]) -> LatentSpace:
    """The latent space of an autoencoder for the pictures of `config.data`.

    Args:
      canvas: rows and columns of patches; see `LatentSpace`.
    """
    data = config["data"]
    ragged = data["policy"].startswith("bucket")
    return LatentSpace(autoencoder, data["patch"], *canvas, ragged, config["compute_dtype"])


def build_autoencoder(config: Config) -> AutoencoderKLFlux2:
    """The autoencoder of `config.autoencoder`; its statistics are those of patch-sized squares."""
    settings = config["autoencoder"]
    names = ("latent_channels", "resnets", "quant_conv", "attention_backend", "remat")
    return AutoencoderKLFlux2(
        widths=tuple(settings["widths"]),
        groups=settings["norm_groups"],
        side=config["data"]["patch"] // 2 ** (len(settings["widths"]) - 1),
        **{name: settings[name] for name in names},
    )


def build_discriminator(config: Config) -> PatchDiscriminator | None:
    """The discriminator of `config.autoencoder.discriminator`; None if its weight is 0."""
    settings = config["autoencoder"]["discriminator"]
    if not settings["weight"]:
        return None
    groups = config["autoencoder"]["norm_groups"]
    return PatchDiscriminator(settings["width"], settings["layers"], groups)


def build_trained_autoencoder(config: Config) -> AutoencoderKLFlux2 | AdversarialAutoencoder:
    """What the autoencoder stage trains: the autoencoder, with a discriminator if there is one."""
    autoencoder, discriminator = build_autoencoder(config), build_discriminator(config)
    return AdversarialAutoencoder(autoencoder, discriminator) if discriminator else autoencoder


def build_codec(config: Config) -> Codec:
    """Compressor, decompressor and pixel decoder of `config.codec`."""
    codec, feature_dim = config["codec"], config["encoder"]["vision"]["width"]
    latent_dim = feature_dim if codec["compressor"] == "identity" else codec["latent_dim"]
    window = codec["pool"] if codec["pool"] > 1 else None
    options = {
        "heads": codec["compressor_heads"] or None,
        "window": window,
        "backend": codec["attention_backend"],
    }
    return Codec(
        compressor=make_compressor(codec["compressor"], feature_dim, latent_dim, **options),
        decompressor=make_decompressor(codec["compressor"], feature_dim, latent_dim, **options),
        pixel_decoder=build_decoder(config, build_space(config), feature_dim),
        latent_dim=latent_dim,
        pool=codec["pool"],
    )


def _most_tokens(config: Config) -> int:
    """Latent tokens of the largest picture; only "naflex" has pictures larger than `image_size`."""
    data, pool = config["data"], config["codec"]["pool"]
    naflex = data["policy"] == "naflex"
    return data["max_tokens"] // pool**2 if naflex else (grid_side(config) // pool) ** 2


def build_unified(config: Config) -> UnifiedModel:
    """The transformer of `config.unified` and the image side of its family.

    Raises:
      ValueError: an unknown `unified.pathway`, or settings that its family does not support.
    """
    unified, family = config["unified"], family_of(config)
    sizes = {**unified["transformer"]}
    sizes["rope_sections"] = tuple(sizes["rope_sections"])
    transformer = Transformer(vocab_size=config["data"]["vocab_size"], **sizes)
    _check_codec(config, family.codec(config))
    _check_positions(unified, family)
    model = UnifiedModel(
        transformer=transformer,
        images=family.images(config, transformer),
        text_chunk=unified["text_chunk"],
        z_loss=unified["z_loss"],
        compute_dtype=config["compute_dtype"],
    )
    return _grown(model, config) if unified["tuned_at"] else model


def _grown(model: UnifiedModel, config: Config) -> UnifiedModel:
    """`model` as one that grew from that of `unified.tuned_at`.

    Raises:
      ValueError: there is no such smaller model, or it has other weights.
    """
    try:
        model = dataclasses.replace(model, tuned=build_unified(tuned_config(config)))
        model.grown()
    except ValueError as error:
        sizes = ",".join(config["unified"]["tuned_at"])
        raise ValueError(f"unified.tuned_at={sizes}: of the tuned model, {error}") from error
    return model


def _check_positions(unified: Mapping[str, Any], family: Family) -> None:
    """Raises ValueError if a picture's positions are not of the family, or of the transformer."""
    kind, sections = unified["image_positions"], unified["transformer"]["rope_sections"]
    if kind not in family.positions:
        raise ValueError(
            f"unified.image_positions={kind} is not for unified.pathway={unified['pathway']}; set "
            f"it to {' or '.join(family.positions)}"
        )
    if (kind == "mrope") != (len(sections) == 3):
        raise ValueError(
            f"unified.transformer.rope_sections={tuple(sections)} with unified.image_positions="
            f"{kind}; give three sections for mrope, and () for others"
        )


def _check_codec(config: Config, codec: LatentCodec) -> None:
    """Checks that the data settings suit the family's codec.

    Raises:
      ValueError: `codec.pool` differs from the codec's, or the data have pictures of any shape,
        which no canvas fits.
    """
    pathway, given = config["unified"]["pathway"], config["codec"]["pool"]
    if given != codec.pool:
        raise ValueError(
            f"codec.pool={given}: latents of unified.pathway={pathway} stand for {codec.pool} x "
            f"{codec.pool} patches; set codec.pool={codec.pool}"
        )
    if codec.canvas and config["data"]["policy"] == "naflex":
        raise ValueError(
            f"unified.pathway={pathway} draws latents of pictures of a few shapes, but "
            "data.policy=naflex allows any; set data.policy=bucket"
        )


def build_unicom(config: Config, transformer: Transformer) -> ImageModel:
    """Pathway I, over features of the encoder and latents of the codec."""
    return make_unicom(
        config["unified"],
        width=transformer.width,
        vision=build_encoder(config).vision,
        codec=build_codec(config),
        compute_dtype=config["compute_dtype"],
    )


def build_query(config: Config, transformer: Transformer) -> ImageModel:
    """Pathway II, over the same features and latents."""
    return make_query(
        config["unified"],
        width=transformer.width,
        heads=transformer.heads,
        queries=_most_tokens(config),
        vision=build_encoder(config).vision,
        codec=build_codec(config),
        compute_dtype=config["compute_dtype"],
    )


# The value of black for Cheers' autoencoder and encoder, by `unified.cheers.pixel_range`.
DARKEST = {"signed": -1.0, "unit": 0.0}


def build_autoencoder_codec(config: Config, darkest: float = -1.0) -> AutoencoderCodec:
    """The packed latents of the autoencoder of `config.autoencoder`.

    Args:
      darkest: the value of black for the autoencoder.

    Raises:
      ValueError: pictures have several shapes and their common canvas is not known yet.
    """
    canvas, policy = tuple(config["autoencoder"]["canvas"]), config["data"]["policy"]
    if policy in SQUARE:
        canvas = (grid_side(config), grid_side(config))
    if not canvas:
        raise ValueError(
            f"autoencoder.canvas=() with data.policy={policy}: call "
            "adopt_autoencoder of unicom_jax.runs.autoencoder, as a run does when it starts"
        )
    space = space_of(config, build_autoencoder(config), canvas)
    return AutoencoderCodec(space, darkest)


def build_latents(config: Config) -> AutoencoderCodec:
    """`build_autoencoder_codec` with the range of pixels that Cheers is configured for."""
    return build_autoencoder_codec(config, DARKEST[config["unified"]["cheers"]["pixel_range"]])


def build_cheers(config: Config, transformer: Transformer) -> ImageModel:
    """Cheers, over the latents of the autoencoder and the encoder's image tower."""
    return make_cheers(
        config["unified"],
        width=transformer.width,
        vision=build_encoder(config).vision,
        codec=build_latents(config),
        compute_dtype=config["compute_dtype"],
    )


def build_uae(config: Config, transformer: Transformer) -> ImageModel:
    """UAE, over the latents of the autoencoder."""
    return make_uae(
        config["unified"],
        width=transformer.width,
        codec=build_autoencoder_codec(config),
        compute_dtype=config["compute_dtype"],
    )


# ---- the families -----------------------------------------------------------------------------

VISION = Subtree("encoder", "vision")
# Top-level keys of the autoencoder stage's weights: the decoder's, and all but the discriminator's.
DECODER_KEYS = ("decoder", "post_quant_conv", "statistics")
AUTOENCODER_KEYS = ("encoder", "quant_conv", *DECODER_KEYS)


def _cheers_starts_from(config: Config) -> dict[str, Subtree]:
    """The image tower, and the copy of the autoencoder's decoder if there is one; if not, the tower
    reads latents through a newly initialised embedding."""
    if not config["unified"]["cheers"]["pixels"]:
        return {"vision": Subtree("encoder", "vision", fresh=("embedding",))}
    own = Subtree("autoencoder", DECODER_KEYS, optional=("post_quant_conv",))
    return {"vision": VISION, "decoder": own}


def _unicom(**own: Any) -> Family:
    """Either pathway: latents of the compressor over features of the frozen encoder."""
    return Family(
        codec=build_codec,
        space=build_space,
        # A unified stage draws latents, so the weights that paint them are not loaded.
        frozen={"encoder": VISION, "codec": Subtree("codec", ("compressor", "statistics"))},
        in_model={"vision": VISION, "codec": Subtree("codec")},
        cast="embedding/(projector|latent_in)/.*",
        **own,
    )


# The weights of families that draw in latents of the stage `autoencoder`.
LATENTS = Subtree("autoencoder", AUTOENCODER_KEYS, optional=("quant_conv", "post_quant_conv"))
IN_LATENTS = {"frozen": {"autoencoder": LATENTS}, "in_model": {"codec": LATENTS}}


# By `unified.pathway`. A new family needs a file with an `ImageModel`, and a row here.
FAMILIES: dict[str, Family] = {
    "transfusion": _unicom(images=build_unicom),
    "query": _unicom(images=build_query, heads=("unified.flow_decoder.heads",)),
    "cheers": Family(
        images=build_cheers,
        codec=build_latents,
        starts_from=_cheers_starts_from,
        **IN_LATENTS,
        details="head/gate/down/.*",
        heads=("unified.cheers.semantics.heads", "unified.cheers.details.heads"),
    ),
    "uae": Family(
        images=build_uae,
        codec=build_autoencoder_codec,
        cast="(vision/|decoder/transformer/(dual|joint|last)/(?!.*modulation))",
        heads=("unified.uae.vision.heads", "unified.uae.decoder.heads"),
        remat="unified.uae.decoder.remat",
        positions=("mrope",),
        **IN_LATENTS,
    ),
}


def family_of(config: Config) -> Family:
    """The family of a configuration.

    Raises:
      ValueError: an unknown `unified.pathway`.
    """
    if (given := config["unified"]["pathway"]) not in FAMILIES:
        raise ValueError(f"unified.pathway={given!r} is not one of {', '.join(FAMILIES)}")
    return FAMILIES[given]
