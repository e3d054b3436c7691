"""KL autoencoders as diffusers writes them: `AutoencoderKL` (FLUX.1) and `AutoencoderKLFlux2`.

Our tree uses diffusers' names, so the table follows from the weights: convolutions are transposed
from (out, in, h, w) to (h, w, in, out), projections from (out, in) to (in, out). In diffusers, the
statistics are those of a BatchNorm, which also counts batches; this count is not used.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module, iter_specs
from unicom_jax.interop.layouts.description import check_fixed, read_fields
from unicom_jax.interop.mapping import Rule, Table
from unicom_jax.models.autoencoder import Autoencoder, AutoencoderKL, AutoencoderKLFlux2

# {our field: (the key of diffusers' config.json, its default there)}
Fields = Mapping[str, tuple[str, Any]]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of diffusers, by its name, which ours shares.

    Attributes:
      fields: the fields that we read.
      fixed: other fields of diffusers, and the values that ours supports; the first is also the
        default there.
    """

    module: type[Autoencoder]
    fields: Fields
    fixed: Mapping[str, tuple[Any, ...]]


FIXED = {
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
}
COMMON = {"groups": ("norm_num_groups", 32), "quant_conv": ("use_quant_conv", True)}
KINDS = {
    kind.module.__name__: kind
    for kind in (
        Kind(
            AutoencoderKL,
            {
                "latent_channels": ("latent_channels", 4),
                "widths": ("block_out_channels", (64,)),
                "resnets": ("layers_per_block", 1),
                **COMMON,
                "scale": ("scaling_factor", 0.18215),
                "shift": ("shift_factor", 0.0),
            },
            {**FIXED, "latents_mean": (None,), "latents_std": (None,)},
        ),
        Kind(
            AutoencoderKLFlux2,
            {
                "latent_channels": ("latent_channels", 32),
                "widths": ("block_out_channels", (128, 256, 512, 512)),
                "resnets": ("layers_per_block", 2),
                **COMMON,
                "side": ("patch_size", (2, 2)),
                "eps": ("batch_norm_eps", 1e-4),
            },
            {**FIXED, "decoder_block_out_channels": (None,)},
        ),
    )
}
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
STATISTICS = {"mean": "bn.running_mean", "variance": "bn.running_var"}
HINTS = dict.fromkeys(
    STATISTICS.values(), "the statistics by which its latents are normalised; copy them again"
)
SIZES = {"block_out_channels", "latent_channels"}
REMEDY = "take an autoencoder like those of Stable Diffusion, FLUX and FLUX.2"


def _one_side(sides: Sequence[int]) -> int:
    if len(set(sides)) != 1:
        raise ValueError(f"patch_size is {list(sides)}, but only squares are supported; {REMEDY}")
    return sides[0]


# Fields that diffusers writes in another form: (theirs to ours, ours to theirs).
CONVERTED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "widths": (tuple, list),
    "side": (_one_side, lambda side: [side, side]),
}
AS_IT_IS = (lambda value: value,) * 2


def table(module: Module) -> Table:
    """Rules for all weights of `module`, an autoencoder or one of its halves."""
    rules = []
    for (*stem, leaf), spec in iter_specs(module.specs()):
        path = "/".join((*stem, leaf))
        if stem == ["statistics"]:
            rules.append(Rule(path, STATISTICS[leaf]))
            continue
        name = f"{'.'.join(stem)}.{'bias' if leaf == 'bias' else 'weight'}"
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: ()}[len(spec.shape)]
        rules.append(Rule(path, name, axes))
    return tuple(rules)


def spare(module: Autoencoder) -> tuple[str, ...]:
    """Tensors that are not read: the number of batches in the statistics."""
    return ("bn.num_batches_tracked",) if "statistics" in module.specs() else ()


# Names of the attention before diffusers 0.15, which it still reads: old name, new name.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.(?=weight$|bias$)")


def new_name(name: str) -> str:
    """The current name of a tensor, from its name in a file of any version."""
    return _OLD.sub(lambda found: f"{found[1]}.{OLD_NAMES[found[2]]}.", name)


def describe(module: Autoencoder) -> dict[str, Any]:
    """The config.json of `module`."""
    name, levels = type(module).__name__, len(module.widths)
    kind = KINDS[name]
    fields = {
        key: CONVERTED.get(ours, AS_IT_IS)[1](getattr(module, ours))
        for ours, (key, _) in kind.fields.items()
    }
    return {
        "_class_name": name,
        **fields,
        "use_post_quant_conv": module.quant_conv,
        **{key: values[0] for key, values in kind.fixed.items()},
        **{key: [block] * levels for key, block in BLOCKS.items()},
    }


def module_of(config: Mapping[str, Any], path: Path) -> Autoencoder:
    """The autoencoder that a config.json at `path` describes.

    Raises:
      ConfigError: it describes an autoencoder that ours does not support.
    """
    # Without a name, as in old files, only its sizes say that it is one.
    name = config.get("_class_name", AutoencoderKL.__name__ if SIZES & config.keys() else None)
    if (kind := KINDS.get(name)) is None:
        known = " and ".join(KINDS)
        raise ConfigError(
            f"{path}: _class_name is {name!r}, but only {known} are supported; {REMEDY}"
        )
    sizes = read_fields(config, kind.fields, path)
    sizes = {ours: CONVERTED.get(ours, AS_IT_IS)[0](value) for ours, value in sizes.items()}
    levels = len(sizes["widths"])
    blocks = {key: ([block] * levels,) for key, block in BLOCKS.items()}
    listed = {key: list(config[key]) for key in BLOCKS if key in config}
    check_fixed({**config, **listed}, {**kind.fixed, **blocks}, path, REMEDY)
    # diffusers assumes True if the key is absent, whatever `use_quant_conv` says.
    check_fixed(
        {"use_post_quant_conv": config.get("use_post_quant_conv", True)},
        {"use_post_quant_conv": (sizes["quant_conv"],)},
        path,
        REMEDY,
    )
    return kind.module(**sizes)
