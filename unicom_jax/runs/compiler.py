"""What a run sets for XLA before JAX starts: flags, the compilation cache, a dump of programs."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from unicom_jax.core.memory import computes_on_cpu
from unicom_jax.core.paths import as_path
from unicom_jax.parallel.xla_flags import set_flags

COMPILED = "compiled"  # folder in a workdir


def prepare_compiler(
    flags: str, workdir: Path, cache: str | None = None, dump: str | None = None
) -> None:
    """Sets flags, cache and dump. Call it before anything asks JAX for a device.

    Args:
      flags: `config.xla_flags`.
      cache: folder of compiled programs, or "off". None: JAX_COMPILATION_CACHE_DIR, else a folder
        in the workdir, except on a CPU, whose programs suit only one make of processor.
      dump: folder for the text of programs, or None.
    """
    if not computes_on_cpu():
        set_flags(flags)
    if dump:
        given = os.environ.get("XLA_FLAGS", "")
        own = f"--xla_dump_to={Path(dump).absolute()} --xla_dump_hlo_as_text"
        os.environ["XLA_FLAGS"] = f"{given} {own}".strip()
    if cache == "off":
        jax.config.update("jax_enable_compilation_cache", False)
    elif folder := _cache_folder(workdir, cache):
        jax.config.update("jax_compilation_cache_dir", folder)


def _cache_folder(workdir: Path, cache: str | None) -> str:
    if cache:
        return str(as_path(cache).expanduser().absolute())
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or computes_on_cpu():
        return ""
    return str((workdir / COMPILED).absolute())
