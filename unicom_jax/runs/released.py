"""Where the released weights of a stage come from: the folders that `init_from` names.

    autoencoder.init_from     FLUX.2's autoencoder     all of it
                              an AutoencoderKL         all of it, with its scale and shift as
                                                       statistics
                              Cheers                   its frozen autoencoder
    encoder.init_from         SigLIP or SigLIP 2       the image tower; both towers where the text
                                                       tower has the sizes of `encoder.text` and
                                                       as many rows of vocabulary
    codec.init_from           compressor/ and decompressor/ of a folder, see layouts/projection.py
    codec.decoder.init_from   FLUX's transformer       a decoder of kind "flux"
                              Stable Diffusion 3's     a decoder of kind "sd3"
    unified.init_from         Qwen2, Qwen2.5, Qwen3    the transformer
                              Cheers                   all of the model but the autoencoder
                              Qwen2.5-VL               transformer and image tower of a UAE
    unified.uae.decoder.init_from  as codec.decoder.init_from with kind "sd3", for a UAE

All other weights of a stage are random, see `initial.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module
from unicom_jax.core.paths import as_path
from unicom_jax.families import painters
from unicom_jax.families.build import build_autoencoder, build_codec, build_encoder, build_unified
from unicom_jax.families.uae import UaeImages
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.interop.folders import check_model, module_in
from unicom_jax.interop.layouts.layout import LAYOUTS, Layout
from unicom_jax.interop.tensors import TensorFact
from unicom_jax.models.autoencoder import AutoencoderKL, AutoencoderKLFlux2
from unicom_jax.models.contrastive import Contrastive
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.runs.released_cheers import is_cheers, released_cheers
from unicom_jax.runs.sizes import (
    COMPUTE,
    check_autoencoder,
    check_same,
    check_transformer,
    check_vision,
    is_same,
)
from unicom_jax.runs.stages import PARTS, names_a_run, spec_of

Config = Mapping[str, Any]
# Names for all of a folder's weights in errors and reports.
WHOLE = {Contrastive: "both towers", AutoencoderKLFlux2: "the autoencoder"}
WHOLE[AutoencoderKL] = WHOLE[AutoencoderKLFlux2]


@dataclasses.dataclass(frozen=True)
class Source:
    """A part of a stage's weights that a folder gives.

    Attributes:
      key: the configuration key that names the folder.
      path: path of the part in the stage's tree; () if it is the whole tree.
      module: the part as it is in the folder.
      vocab_size: vocabulary of the part as it is in the stage; 0 if it has none that may grow.
      constants: weights of the stage that the folder has as one number each, by path.
    """

    key: str
    path: tuple[str, ...]
    folder: Path
    layout: Layout
    module: Module
    vocab_size: int = 0
    constants: Mapping[tuple[str, ...], float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return "/".join(self.path) or WHOLE.get(type(self.module), "all weights")

    @property
    def new_rows(self) -> range:
        """The rows of our vocabulary that the folder lacks."""
        language = getattr(self.module, "transformer", self.module)
        return range(getattr(language, "vocab_size", 0), self.vocab_size)

    @property
    def whole(self) -> bool:
        """Whether it provides all of the stage's weights, so that none comes from another part."""
        return not self.path

    def check(self) -> dict[str, TensorFact]:
        """The tensors to read; raises WeightsError if names, shapes or types are wrong."""
        return check_model(self.folder, self.layout, self.module)


def build_stage(config: Config, stage: str) -> Module:
    """The module whose weights a stage trains."""
    return PARTS[spec_of(stage).part].build(config)


def sources_of(config: Config, stage: str) -> list[Source]:
    """What a stage starts from, by the `init_from` keys of its configuration.

    Raises:
      ConfigError: a folder of another kind or with other sizes; the message names the key to set.
    """
    found = RELEASED.get(spec_of(stage).part)
    return found.find(config) if found else []


def describe_sources(sources: list[Source]) -> str:
    """What is read and what is not, in words."""
    words = []
    for source in sources:
        new = source.new_rows
        grown = f" (rows {new.start} to {new.stop - 1} are the mean of the others)" if new else ""
        words.append(f"{source.name} from {source.folder}{grown}")
    return f"starts with {', '.join(words)}"


def _folder(settings: Mapping[str, Any]) -> str:
    """The `init_from` of a part that names a folder of released weights; "" if it is unset or
    names a run. That of a decoder inside a part always names a folder."""
    return "" if names_a_run(settings["init_from"]) else settings["init_from"]


def _encoder(config: Config) -> list[Source]:
    if not (given := _folder(config["encoder"])):
        return []
    key, folder, layout = "encoder.init_from", as_path(given), LAYOUTS["siglip"]
    ours, theirs = build_encoder(config), module_in(folder, layout)
    vision = theirs.vision if isinstance(theirs, Contrastive) else theirs
    if not isinstance(vision, VisionEncoder):
        raise ConfigError(
            f"{key}={given} holds only a text tower; give a folder with an image tower"
        )
    check_vision(ours.vision, vision, key, given)
    if isinstance(theirs, Contrastive) and is_same(ours.text, theirs.text):
        return [Source(key, (), folder, layout, theirs)]
    return [Source(key, ("vision",), folder, layout, vision)]


def _autoencoder(config: Config) -> list[Source]:
    if not (given := _folder(config["autoencoder"])):
        return []
    key, folder, layout = "autoencoder.init_from", as_path(given), LAYOUTS["autoencoder"]
    if is_cheers(folder):
        own = released_cheers(config, key, folder).autoencoder
        return [Source(key, (), folder, LAYOUTS["cheers"], own)]
    ours, theirs = build_autoencoder(config), module_in(folder, layout)
    constants = {}
    if isinstance(theirs, AutoencoderKL):
        constants = _statistics_of(theirs, ours, key, given)
        check_autoencoder(ours, _with_statistics(theirs, ours), key, given)
    else:
        check_autoencoder(ours, theirs, key, given)
    return [Source(key, (), folder, layout, theirs, constants=constants)]


def _with_statistics(theirs: AutoencoderKL, ours: AutoencoderKLFlux2) -> AutoencoderKLFlux2:
    """An autoencoder of the sizes of `theirs`, and of our kind."""
    names = {field.name for field in dataclasses.fields(theirs)} - {"scale", "shift"}
    return dataclasses.replace(ours, **{name: getattr(theirs, name) for name in names})


def _statistics_of(
    theirs: AutoencoderKL, ours: AutoencoderKLFlux2, key: str, given: str
) -> dict[tuple[str, ...], float]:
    """The statistics by which ours normalises as `theirs` does: (z - shift) · scale."""
    if (variance := 1 / theirs.scale**2 - ours.eps) <= 0:
        raise ConfigError(
            f"{key}={given} has scaling_factor={theirs.scale}, which would need a variance below "
            "0; use another autoencoder"
        )
    return {("statistics", "mean"): theirs.shift, ("statistics", "variance"): variance}


def _codec(config: Config) -> list[Source]:
    codec, settings = build_codec(config), config["codec"]
    sources = []
    if given := _folder(settings):
        names = {"in_dim": "encoder.vision.width", "out_dim": "codec.latent_dim"}
        back = {"in_dim": names["out_dim"], "out_dim": names["in_dim"]}
        both = {"heads": "codec.compressor_heads", "window": "codec.pool"}
        for part, keys in (("compressor", names | both), ("decompressor", back | both)):
            folder, layout = as_path(given) / part, LAYOUTS["projection"]
            ours, theirs = getattr(codec, part), module_in(folder, layout)
            if type(ours) is not type(theirs):
                raise ConfigError(
                    f"codec.init_from={given}: {part} is a {type(theirs).__name__}, the config "
                    f"asks for a {type(ours).__name__}; set --config.codec.compressor"
                )
            check_same(ours, theirs, keys, "codec.init_from", given)
            sources.append(Source("codec.init_from", (part,), folder, layout, theirs))
    if given := settings["decoder"]["init_from"]:
        sources.append(_decoder(codec.pixel_decoder, given))
    return sources


DERIVED = ("out_channels", "latent_channels", "patch")  # fields without a configuration key


def _decoder(ours: Module, given: str) -> Source:
    key = "codec.decoder.init_from"
    if (kind := painters.RELEASED.get(type(ours))) is None:
        kinds = " or ".join(painters.RELEASED.values())
        raise ConfigError(
            f"{key}={given}: only decoders of kind {kinds} have released weights; leave {key} "
            "empty, or set --config.codec.decoder.kind=flux"
        )
    return _painter(ours, ("pixel_decoder",), f"codec.decoder.{kind}", key, given)


def _painter(ours: Module, path: tuple[str, ...], sizes: str, key: str, given: str) -> Source:
    """The released transformer of the decoder `ours` at `path`; `sizes`: its group of keys."""
    layout, folder = LAYOUTS[painters.RELEASED[type(ours)]], as_path(given)
    theirs = module_in(folder, layout)
    names = [field.name for field in dataclasses.fields(theirs) if field.name not in COMPUTE]
    # The others follow from these, or from the autoencoder.
    keys = {name: f"{sizes}.{name}" for name in names if name not in DERIVED}
    check_same(ours.transformer, theirs, keys, key, given)
    return Source(key, (*path, "transformer"), folder, layout, theirs)


def _uae(config: Config, model: UnifiedModel) -> list[Source]:
    """Reader and drawer of a UAE, each from a folder of its own."""
    settings, sources = config["unified"], []
    if given := _folder(settings):
        key, folder, layout = "unified.init_from", as_path(given), LAYOUTS["qwen_vl"]
        theirs, ours = module_in(folder, layout), model.transformer
        check_transformer(settings["transformer"], ours, theirs.transformer, key, given)
        keys = {name: f"unified.uae.vision.{name}" for name in settings["uae"]["vision"]}
        keys["merge"] = "unified.fold"
        check_same(model.images.vision, theirs.vision, keys, key, given)
        sources += [
            Source(key, ("transformer",), folder, layout, theirs.transformer, ours.vocab_size),
            Source(key, ("vision",), folder, layout, theirs.vision),
        ]
    if given := settings["uae"]["decoder"]["init_from"]:
        key, sizes = "unified.uae.decoder.init_from", "unified.uae.decoder"
        sources.append(_painter(model.images.decoder, ("decoder",), sizes, key, given))
    return sources


def _unified(config: Config) -> list[Source]:
    settings = config["unified"]
    if not _folder(settings) and not settings["uae"]["decoder"]["init_from"]:
        return []
    if isinstance((model := build_unified(config)).images, UaeImages):
        return _uae(config, model)
    if not (given := _folder(settings)):
        return []
    key, folder, layout = "unified.init_from", as_path(given), LAYOUTS["qwen"]
    if is_cheers(folder):
        whole, rows = released_cheers(config, key, folder).unified, config["data"]["vocab_size"]
        return [Source(key, (), folder, LAYOUTS["cheers"], whole, rows)]
    ours, theirs = model.transformer, module_in(folder, layout)
    check_transformer(settings["transformer"], ours, theirs, key, given)
    return [Source(key, ("transformer",), folder, layout, theirs, ours.vocab_size)]


class Released(NamedTuple):
    """How released weights of a part are found, and the configuration keys that name folders."""

    find: Callable[[Config], list[Source]]
    keys: tuple[str, ...]


# By part; parts that are not listed have no released weights.
RELEASED = {
    "encoder": Released(_encoder, ("encoder.init_from",)),
    "autoencoder": Released(_autoencoder, ("autoencoder.init_from",)),
    "codec": Released(_codec, ("codec.init_from", "codec.decoder.init_from")),
    "unified": Released(_unified, ("unified.init_from", "unified.uae.decoder.init_from")),
}


def given_folders(config: Config, part: str) -> dict[str, str]:
    """{key: folder} of the released weights that the configuration names for a part."""
    found = {}
    for key in RELEASED[part].keys if part in RELEASED else ():
        *groups, name = key.split(".")
        settings = functools.reduce(operator.getitem, groups, config)
        if given := settings[name] if groups[1:] else _folder(settings):
            found[key] = given
    return found
