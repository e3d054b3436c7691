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
    if config["unified"]["z_loss"] < 0:
        raise ConfigError(
            f"unified.z_loss={config['unified']['z_loss']} would drive the logits apart; give a "
            "small factor, 1e-4 for example, or 0 for none"
        )
    for share in config["codec"]["perceptual_layers"] or (-1,):
        if not 0 <= share <= 1:
            raise ConfigError(
                f"codec.perceptual_layers={config['codec']['perceptual_layers']} should be shares "
                "of the encoder's depth from 0 to 1, at least one; (0.5,) is its middle layer"
            )
    if config["codec"]["perceptual_time"] < 0:
        raise ConfigError(
            f"codec.perceptual_time={config['codec']['perceptual_time']} would weight pictures "
            "near noise without bound; give 0 or more"
        )
    for stage in stages:
        _check_stage(stage, config[stage])


def check_on_mesh(stage: str, config: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Looks at what a mesh of these sizes asks of a stage.

    Raises:
      ConfigError: its rows do not divide over the mesh's `context` axis, or the heads of what it
        trains over the `tensor` axis: each device would compute all of them.
    """
    slots, parts = config[stage].get("sequence_length", 0), sizes.get("context", 1)
    if slots % parts:
        raise ConfigError(
            f"{stage}.sequence_length={slots} does not divide over context={parts} of the mesh; "
            "make it a multiple, or give the devices to another axis"
        )
    tensor = sizes.get("tensor", 1)
    for key, heads in _attention_heads(stage, config).items():
        if heads % tensor and _is_trained(stage, config, key):
            best = max(n for n in range(1, tensor) if heads % n == 0 and tensor % n == 0)
            raise ConfigError(
                f"{key}={heads} does not divide over tensor={tensor} of the mesh, so every device "
                f"would compute all heads; set tensor={best} there, or change the number of heads"
            )


def copies_on_mesh(stage: str, config: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """One line for each part of a stage that the mesh's `tensor` axis does not divide, though the
    run is possible: what is computed or kept whole on every device of the axis."""
    tensor = sizes.get("tensor", 1)
    own = {
        key: (heads, "each device computes all heads of this part")
        for key, heads in _attention_heads(stage, config).items()
        if not _is_trained(stage, config, key)
    }
    if _is_unified(stage, config):
        kv_heads = config["unified"]["transformer"]["kv_heads"]
        own["unified.transformer.kv_heads"] = (kv_heads, "key heads are kept in copies")
    if _is_unified(stage, config) or stage == "encoder":
        vocabulary = config["data"]["vocab_size"]
        own["data.vocab_size"] = (vocabulary, "each device keeps the table and computes all logits")
    return [
        f"{stage}: {key}={size} does not divide over tensor={tensor} of the mesh: {what}"
        + ("; set data.padded_vocab_size to a multiple" if key == "data.vocab_size" else "")
        for key, (size, what) in own.items()
        if size % tensor
    ]


def _is_unified(stage: str, config: Mapping[str, Any]) -> bool:
    return "mixture" in config[stage]


def _is_trained(stage: str, config: Mapping[str, Any], key: str) -> bool:
    return key.split(".")[0] == ("unified" if _is_unified(stage, config) else stage)


def _attention_heads(stage: str, config: Mapping[str, Any]) -> dict[str, int]:
    """Key of the configuration -> heads, of every attention over many slots that a stage runs."""
    encoder, decoder, unified = config["encoder"], config["codec"]["decoder"], config["unified"]
    heads = {"encoder.vision.heads": encoder["vision"]["heads"]}
    if stage == "encoder":
        heads["encoder.text.heads"] = encoder["text"]["heads"]
    elif not _is_unified(stage, config):
        flux = decoder["kind"] == "flux"
        key, part = ("decoder.flux", decoder["flux"]) if flux else ("decoder", decoder)
        heads[f"codec.{key}.heads"] = part["heads"]
    else:
        heads["unified.transformer.heads"] = unified["transformer"]["heads"]
        if unified["pathway"] == "query":
            heads["unified.flow_decoder.heads"] = unified["flow_decoder"]["heads"]
    return heads


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
    if settings["schedule"] == "wsd" and not 0 < settings["decay_share"] <= 1:
        raise ConfigError(
            f"{stage}.decay_share={settings['decay_share']}: give the share of the steps in which "
            "the rate falls, above 0 and at most 1"
        )
    if not 0 <= settings["ema_decay"] < 1:
        raise ConfigError(
            f"{stage}.ema_decay={settings['ema_decay']}: give a decay below 1, or 0 for no average"
        )
    if settings["ema_warmup"] and not settings["ema_decay"]:
        raise ConfigError(f"{stage}.ema_warmup=True needs an average; set {stage}.ema_decay")
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
