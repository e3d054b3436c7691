"""Whole models as `unicom export --to=pytorch` writes them, of whichever family.

Each family has a file in this folder, with `of_run`, `table`, `kept_in_fp32` and `describe` for its
own class of modules, and an entry here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from unicom_jax.config import ConfigError
from unicom_jax.interop.layouts import qwen, unicom, unicom_cheers, unicom_uae
from unicom_jax.interop.layouts.unicom import Unicom
from unicom_jax.interop.layouts.unicom_cheers import UnicomCheers
from unicom_jax.interop.layouts.unicom_uae import UnicomUae
from unicom_jax.interop.mapping import Table

Model = Unicom | UnicomCheers | UnicomUae


class Twin(NamedTuple):
    """How a family is exported: its layout, and the PyTorch model's file, class and configuration.

    A family has its own configuration class and `model_type`: transformers remembers the model of a
    configuration class, and would otherwise load another family's model. For the model card,
    `about` is the first sentence about the model, and `exact` names the parts that stay in float32.
    """

    layout: ModuleType
    file: str
    name: str
    config: str
    model_type: str
    about: str
    exact: str


UNICOM = Twin(
    unicom,
    "modeling_unicom",
    "UnicomModel",
    "UnicomConfig",
    "unicom",
    "A unified multimodal model of the UniCom family: one transformer reads words and pictures, "
    "writes words by next-token prediction, and draws by rectified flow on compressed continuous "
    "latents of a SigLIP-style image encoder.",
    "the codec and the flow head",
)
TWINS: dict[str, Twin] = {
    "transfusion": UNICOM,
    "query": UNICOM,
    "cheers": Twin(
        unicom_cheers,
        "modeling_unicom_cheers",
        "UnicomCheersModel",
        "UnicomCheersConfig",
        "unicom_cheers",
        "A unified multimodal model of the Cheers family (arXiv:2603.12793): one transformer reads "
        "words and pictures, writes words by next-token prediction, and draws by rectified flow on "
        "an autoencoder's latents, first from semantics, then with gated details.",
        "the autoencoder, the decoder and the flow head",
    ),
    "uae": Twin(
        unicom_uae,
        "modeling_unicom_uae",
        "UnicomUaeModel",
        "UnicomUaeConfig",
        "unicom_uae",
        "A unified multimodal model of the UAE family (arXiv:2509.09666): a language model of the "
        "Qwen2.5-VL family reads words and pictures and writes words, and an MM-DiT of the Stable "
        "Diffusion 3 family draws an autoencoder's latents from its hidden states of the words.",
        "the autoencoder",
    ),
}


def twin_of(config: Mapping[str, Any]) -> Twin:
    """How a run's model is exported.

    Raises:
      ConfigError: its family has no PyTorch twin.
    """
    if found := TWINS.get(pathway := config["unified"]["pathway"]):
        return found
    raise ConfigError(
        f"unified.pathway={pathway} has no model in PyTorch yet; parts of it can be exported "
        "alone, as its language model with --to=qwen2"
    )


def of_run(config: Mapping[str, Any]) -> Model:
    """The modules of a run's configuration.

    Raises:
      ConfigError: its family has no PyTorch twin.
    """
    return twin_of(config).layout.of_run(config)


LAYOUT_OF = {Unicom: unicom, UnicomCheers: unicom_cheers, UnicomUae: unicom_uae}


def _layout(module: Model) -> ModuleType:
    return LAYOUT_OF[type(module)]


# ---- names ------------------------------------------------------------------------------------


def table(module: Model) -> Table:
    """Rules for all weights of `module`."""
    return _layout(module).table(module)


# Names of earlier exports: {old: new}.
OLD_NAMES = {
    "latent_mean": "statistics.mean",
    "latent_std": "statistics.std",
    "queries": "queries.weight",
}


def new_name(name: str) -> str:
    """The current name of a tensor, from its name in an export of any version."""
    return OLD_NAMES.get(name, name)


def twins(module: Model) -> dict[str, str]:
    """Tensors that may be stored a second time: {name: the one it equals}."""
    prefix = "language_model."
    named = qwen.twins(module.unified.transformer)
    return {prefix + name: prefix + other for name, other in named.items()}


def kept_in_fp32(module: Model) -> tuple[str, ...]:
    """Prefixes of names of the tensors that stay in fp32, whatever the type of the others."""
    return _layout(module).kept_in_fp32(module)


def rounded_paths(module: Model) -> frozenset[str]:
    """The paths of our weights that are not in `kept_in_fp32`."""
    kept = kept_in_fp32(module)
    return frozenset(
        path for rule in table(module) if not rule.theirs.startswith(kept) for path in rule.paths
    )


# ---- config.json ------------------------------------------------------------------------------


def describe(module: Model, config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of `UnicomConfig` for `module`, made from the run's `config`."""
    return _layout(module).describe(module, config)


def check_sections(
    found: Mapping[str, Any], module: Model, config: Mapping[str, Any], path: Path
) -> None:
    """Refuses a config.json at `path` whose sections disagree with its run's `config`.

    Raises:
      ConfigError: it names the section.
    """
    for name, section in describe(module, config).items():
        if found.get(name) != json.loads(json.dumps(section)):  # tuples became lists
            raise ConfigError(
                f"{path}: {name} does not agree with run.config below it; to import the model, "
                "both must have the sizes that it was trained with"
            )
