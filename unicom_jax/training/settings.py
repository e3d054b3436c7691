"""Values of a configuration that would only fail later: under jit, or after hours of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.core.flow import SAMPLERS, TIME_KINDS
from unicom_jax.models.pixel_decoder import PREDICTIONS

COMPUTE_DTYPES = ("float32", "bfloat16")
AT_LEAST = {
    **dict.fromkeys(("batch_size", "accumulate", "log_every", "keep", "eval_batches"), 1),
    "max_skipped": 1,
    "max_rollbacks": 0,
    "keep_best": 0,
}


def check_settings(config: Mapping[str, Any], stages: Iterable[str]) -> None:
    """Looks at what all stages share, and at the settings of `stages`.

    Raises:
      ConfigError: names the key, its value and what it may be.
    """
    choices = {
        "compute_dtype": (config["compute_dtype"], COMPUTE_DTYPES),
        "sample.sampler": (config["sample"]["sampler"], SAMPLERS),
        "codec.time": (config["codec"]["time"], TIME_KINDS),
        "codec.decoder.prediction": (config["codec"]["decoder"]["prediction"], PREDICTIONS),
        "unified.prediction": (config["unified"]["prediction"], PREDICTIONS),
        "unified.time": (config["unified"]["time"], TIME_KINDS),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise ConfigError(f"{key}={value!r} is unknown; choose {' or '.join(known)}")
    if config["codec"]["time_shift"] <= 0:
        raise ConfigError(
            f"codec.time_shift={config['codec']['time_shift']} leaves only one time; set it above "
            "0, 1 for no shift"
        )
    for stage in stages:
        _check_stage(stage, config[stage])


def check_on_mesh(stage: str, settings: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Looks at what a mesh of these sizes asks of a stage.

    Raises:
      ConfigError: its rows do not divide over the mesh's `context` axis.
    """
    slots, parts = settings.get("sequence_length", 0), sizes["context"]
    if slots % parts:
        raise ConfigError(
            f"{stage}.sequence_length={slots} does not divide over context={parts} of the mesh; "
            "make it a multiple, or give the devices to another axis"
        )


def _check_stage(stage: str, settings: Mapping[str, Any]) -> None:
    for name, least in AT_LEAST.items():
        if settings[name] < least:
            raise ConfigError(f"{stage}.{name}={settings[name]}: give at least {least}")
    if settings["clip_norm"] <= 0:
        raise ConfigError(
            f"{stage}.clip_norm={settings['clip_norm']} would make every update zero; give a norm "
            "above 0, a large one not to clip"
        )
    if settings["spike_factor"] and settings["spike_factor"] <= 1:
        raise ConfigError(
            f"{stage}.spike_factor={settings['spike_factor']} would skip usual steps; give several "
            "medians, 10 for example, or 0 to skip none"
        )
    eval_every, save_every = settings["eval_every"], settings["save_every"]
    if settings["keep_best"] and (not eval_every or save_every % eval_every):
        raise ConfigError(
            f"{stage}.keep_best={settings['keep_best']} needs a held-out loss at every checkpoint; "
            f"set {stage}.eval_every to a divisor of save_every={save_every}"
        )
    if settings["batch_size"] % settings["accumulate"]:
        raise ConfigError(
            f"{stage}.batch_size={settings['batch_size']} cannot be split into "
            f"{stage}.accumulate={settings['accumulate']} equal parts; change one of them"
        )
