"""The Python files that are copied into an exported model."""

from __future__ import annotations

from pathlib import Path

from unicom_jax.interop import pytorch
from unicom_jax.interop.layouts.exported import Twin

SOURCES = Path(pytorch.__file__).parent
# For every family; `OWN_CODE` has those of one family. `verify_unicom.py` is not exported.
CODE = (
    "configuration_unicom",
    "modeling_unicom_base",
    "modeling_unicom_layers",
    "modeling_unicom_vision",
    "modeling_unicom_codec",
    "modeling_unicom_flow",
    "modeling_unicom_language",
    "modeling_unicom_reading",
    "modeling_unicom_standard",
    "modeling_unicom_writing",
    "modeling_unicom_generation",
    "image_processing_unicom",
    "processing_unicom",
    "sequence_unicom",
)
OWN_CODE = {
    "modeling_unicom": (
        "modeling_unicom_flux",
        "modeling_unicom_sd3",
        "modeling_unicom_pathway",
    ),
    "modeling_unicom_cheers": ("modeling_unicom_autoencoded",),
    "modeling_unicom_uae": (
        "modeling_unicom_autoencoded",
        "modeling_unicom_qwen_vision",
        "modeling_unicom_sd3",
    ),
}


def code_of(twin: Twin) -> list[str]:
    """The files of a family, by name in `SOURCES`."""
    return [f"{name}.py" for name in (*CODE, twin.file, *OWN_CODE[twin.file])]
