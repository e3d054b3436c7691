"""What a mesh asks of a stage's settings; all other checks are in `config.check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unicom_jax.config import ConfigError


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
