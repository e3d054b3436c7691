"""Parts of a model that can be exported alone, for classes of transformers and diffusers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from unicom_jax.core.module import Module
from unicom_jax.families.painters import RELEASED
from unicom_jax.families.uae import UaeImages
from unicom_jax.interop.layouts import qwen_vl
from unicom_jax.models.codec import Codec
from unicom_jax.models.paint_space import AUTOENCODER
from unicom_jax.models.qwen_vl import QwenVL
from unicom_jax.models.transformer import Transformer

Modules = Mapping[str, Module]


class Found(NamedTuple):
    """A part of a model, the path of its weights in a run, and which keys there belong to it.

    `keys` (): all.
    """

    module: Module
    path: tuple[str, ...]
    keys: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Part:
    """A part that can be exported alone.

    Attributes:
      layout: a key of `LAYOUTS`.
      find: modules of a model by tree of weights -> its module and the place of its weights in a
        run, or one line why there is none.
    """

    layout: str
    find: Callable[[Modules], Found | str]


def _tree(name: str, missing: str) -> Callable[[Modules], Found | str]:
    """A whole tree of weights; `missing`: why a model may have none."""
    return lambda model: Found(model[name], (name,)) if name in model else missing


def _language(kind: str) -> Callable[[Modules], Found | str]:
    def find(model: Modules) -> Found | str:
        module: Transformer = model["unified"].transformer
        own = "qwen3" if module.qk_norm else "qwen2"
        if own != kind:
            return f"its language model is of the family {own}; use --to={own}"
        return Found(module, ("unified", "transformer"))

    return find


def _reader(model: Modules) -> Found | str:
    """Image tower and language model; the run's tokenizer gives the token of a picture's slots."""
    images, language = model["unified"].images, model["unified"].transformer
    if not isinstance(images, UaeImages):
        return "its pictures are not read by a Qwen2.5-VL; use --to=qwen2 or --to=qwen3"
    reader = QwenVL(images.vision, language, picture_token=0)
    try:
        qwen_vl.describe(reader)
    except ValueError as error:
        return str(error)
    return Found(reader, ("unified",), ("vision", "transformer"))


def _painter(kind: str) -> Callable[[Modules], Found | str]:
    """The decoder's transformer; its layout has no place for the projector of the context."""

    def find(model: Modules) -> Found | str:
        codec, images = model["codec"], model["unified"].images
        if isinstance(codec, Codec):
            decoder, path = codec.pixel_decoder, ("codec", "pixel_decoder")
        elif isinstance(images, UaeImages):
            decoder, path = images.decoder, ("unified", "decoder")
        else:
            return "its latents are decoded by an autoencoder, not by a flow"
        own = RELEASED.get(type(decoder))
        if own == kind:
            return Found(decoder.transformer, (*path, "transformer"))
        if own:
            return f"its pixel decoder is of another kind; use --to={own}"
        return "its pixel decoder is a DiT of our own; export it with --to=pytorch"

    return find


PARTS: dict[str, Part] = {
    "siglip2": Part("siglip", _tree("vision", "no encoder was trained or imported")),
    "qwen2": Part("qwen", _language("qwen2")),
    "qwen3": Part("qwen", _language("qwen3")),
    "qwen2.5-vl": Part("qwen_vl", _reader),
    **{kind: Part(kind, _painter(kind)) for kind in RELEASED.values()},
    AUTOENCODER: Part(AUTOENCODER, _tree(AUTOENCODER, "it paints pixels and has no autoencoder")),
}
