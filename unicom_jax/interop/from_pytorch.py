"""The way back: a folder that `unicom export --to=pytorch` wrote becomes a workdir again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.tokenizer import check_tokenizer, load_tokenizer
from unicom_jax.config import ConfigError, complete, to_json
from unicom_jax.core.module import Params
from unicom_jax.interop import checkpoint as files
from unicom_jax.interop.atomic import new_folder
from unicom_jax.interop.folders import write_model
from unicom_jax.interop.layouts import unicom
from unicom_jax.interop.layouts.description import read_description
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.transfer import load_weights
from unicom_jax.models.paint_space import AUTOENCODER

MODEL_TYPE = "unicom"


def import_model(folder: Path, workdir: Path) -> None:
    """Writes `workdir` from an export: configuration, tokenizer and a checkpoint for each stage.

    The checkpoints hold weights for use and no state of an optimiser: the run can be sampled,
    evaluated, exported, and trained in further stages. Of the encoder they hold the image tower.

    Raises:
      ConfigError: `folder` holds no such model, or its config.json contradicts itself.
      WeightsError: the weights are damaged or do not fit.
      TokenizerError: the tokenizer is not the one that the model was trained with.
      FileExistsError: `workdir` is there already.
    """
    description = read_description(folder)
    config, steps = _read_run(description, folder)
    module = unicom.of_run(config)
    _check_sections(description, unicom.describe(module, config), folder)
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, config["data"]["tokenizer_fingerprint"], str(folder))
    params = load_weights(folder, unicom.table(module), module.specs())
    with new_folder(workdir) as place:
        (place / "config.json").write_text(to_json(ConfigDict(config)))
        tokenizer.save(place / "tokenizer")
        for part, (stage, step) in steps.items():
            held = {"vision": params["vision"]} if part == "vision" else params[part]
            _write_checkpoint(place / stage, step, held, config["seed"])
        if module.autoencoder is not None:
            layout = LAYOUTS["autoencoder"]
            write_model(place / AUTOENCODER, layout, module.autoencoder, params["autoencoder"])


def _read_run(
    description: Mapping[str, Any], folder: Path
) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """The run's configuration, and the stage and step of each tree of weights."""
    if description.get("model_type") != MODEL_TYPE:
        raise ConfigError(
            f"{folder / 'config.json'}: model_type is {description.get('model_type')!r}, not "
            f"{MODEL_TYPE!r}; give a folder that unicom export --to=pytorch wrote"
        )
    try:
        config, steps = description["run"]["config"], description["run"]["steps"]
        return complete(config), {part: (name, int(step)) for part, (name, step) in steps.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'config.json'} lacks the run's configuration ({error!r}); copy it from the "
            "export that the model comes from"
        ) from error


def _check_sections(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    for name, section in expected.items():
        if found.get(name) != section:
            raise ConfigError(
                f"{folder / 'config.json'}: {name} does not agree with the run's configuration "
                "below it; the way back needs the sizes that the model was trained with"
            )


def _write_checkpoint(directory: Path, step: int, params: Params, seed: int) -> None:
    manager = files.open_manager(directory / "checkpoints")
    files.save(manager, step, params, {"step": step}, {"next_step": step, "seed": seed})
    manager.wait_until_finished()
    manager.close()
