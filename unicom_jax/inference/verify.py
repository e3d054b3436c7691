"""`unicom export --verify`: checks that an exported model computes in PyTorch what the run computes
in JAX.

The reference is computed here and stored in a temporary file; a separate process, which loads none
of our code, compares. Both sides compute in fp32 with the weights as they were exported.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
from flax import traverse_util
from rich.console import Console
from rich.table import Table

import unicom_jax.interop.pytorch
from data_pipelines.segments import UNDERSTOOD, Image, Text
from data_pipelines.sequences.sequence import VISION_START, build_prefix
from data_pipelines.sequences.tasks import BRIEFLY
from unicom_jax.core.module import Params
from unicom_jax.inference import engine
from unicom_jax.inference.arrays import LATENTS, PIXELS, noise_at, to_patches
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.prompt import collate, image_slots
from unicom_jax.interop.layouts import exported
from unicom_jax.runs import weights

SCRIPT = Path(unicom_jax.interop.pytorch.__file__).with_name("verify_unicom.py")
PROMPTS = ("a red circle", "a blue square beside a small yellow star")
INSTRUCTIONS = ("make it green", "add a red circle", "remove it")
TIME = 0.3  # flow time of the velocity that is compared
# The largest difference allowed in each comparison, and its measure, by the script's names.
RELATIVE, TOKENS, LEVELS = "of the largest", "tokens", "levels of 255"
LIMITS = {
    "features": (1e-4, RELATIVE),
    "pooled features": (1e-4, RELATIVE),
    "latents": (1e-4, RELATIVE),
    "logits": (1e-4, RELATIVE),
    "velocity": (1e-4, RELATIVE),
    "captions": (0, TOKENS),
    "drawn pictures": (2, LEVELS),
    "edited pictures": (2, LEVELS),
    "reconstructed pictures": (2, LEVELS),
}


class VerifyError(Exception):
    """The exported model differs, or cannot be compared. The message, one line, names the fix."""


def check_torch() -> None:
    """Raises VerifyError if torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise VerifyError("--verify needs torch; pip install torch==2.13.0, or leave it out")


def verify(
    workdir: Path, folder: Path, dtype: str, choice: weights.Choice, console: Console
) -> None:
    """Compares the export in `folder` with the run in `workdir` and prints a table.

    Args:
      dtype, choice: "fp32", "bf16" or "fp16", and the choice of weights, both as in the export.

    Raises:
      VerifyError: a difference is over its limit, or the exported model does not run.
    """
    check_torch()
    generator = _generator(workdir, dtype, choice)
    with tempfile.TemporaryDirectory() as place:
        reference, result = Path(place, "reference.npz"), Path(place, "result.json")
        with console.status("computing the reference in JAX"):
            np.savez(reference, **reference_of(generator))
        with console.status("comparing in PyTorch"):
            _run_script(folder, reference, result)
        found = json.loads(result.read_text(encoding="utf-8"))
    _print(found, console)
    if missed := [name for name, value in found.items() if not value <= LIMITS[name][0]]:
        raise VerifyError(
            f"the export of {workdir} differs in {', '.join(missed)} and was not kept; report the "
            "table above"
        )


def _generator(workdir: Path, dtype: str, choice: weights.Choice) -> Generator:
    config, tokenizer, params = weights.load(workdir, choice)
    if dtype != "fp32":
        kind = {"bf16": jnp.bfloat16, "fp16": jnp.float16}[dtype]
        rounded = exported.rounded_paths(exported.of_run(config))
        flat = traverse_util.flatten_dict(params, sep="/")
        flat |= {path: flat[path].astype(kind).astype(flat[path].dtype) for path in rounded}
        params = traverse_util.unflatten_dict(flat, sep="/")
    return Generator({**config, "compute_dtype": "float32"}, tokenizer, params)


def _run_script(folder: Path, reference: Path, result: Path) -> None:
    modules = reference.with_name("modules")  # transformers copies the export's code there
    hidden = {"PYTHONPATH"}  # the script must not find our code
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(modules)}
    command = [sys.executable, str(SCRIPT), str(folder.resolve()), str(reference), str(result)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=reference.parent
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VerifyError(f"{folder} does not run in PyTorch ({reason}); see {SCRIPT.name}")


def _print(found: dict[str, float], console: Console) -> None:
    table = Table(box=rich.box.SIMPLE_HEAD, title="PyTorch against JAX", title_justify="left")
    table.add_column("output")
    table.add_column("largest difference", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("in")
    table.add_column("")
    for name, value in found.items():
        limit, unit = LIMITS[name]
        good = "ok" if value <= limit else "too large"
        table.add_row(name, f"{value:.3g}", f"{limit:g}", unit, good)
    console.print(table)


# ---- the reference ----------------------------------------------------------------------------


def reference_of(generator: Generator) -> dict[str, np.ndarray]:
    """All inputs and outputs, by the names that the script reads."""
    drawn = [one.image for one in generator.draw(PROMPTS, seed=0)]
    images = [*drawn, _plaid()]
    captions = generator.tokens([[Image(image, UNDERSTOOD), Text(BRIEFLY)] for image in images])
    return {
        **_listed("images", images),
        **_listed("captions", captions),
        **_listed("drawn", drawn),
        **_listed("edited", generator.edit(images, INSTRUCTIONS, seed=0)),
        **_listed("reconstructed", generator.reconstruct(images, seed=0)),
        **_noise(generator),
        **_seen(generator, images[0]),
        **_scored(generator),
        "prompts": np.array(PROMPTS),
        "instructions": np.array(INSTRUCTIONS),
        "question": np.array(BRIEFLY),
        "time": np.array(TIME),
        "max_tokens": np.array(generator.config["sample"]["max_tokens"]),
    }


def _listed(name: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    numbered = {f"{name}.{number}": array for number, array in enumerate(arrays)}
    return {**numbered, f"{name}.count": np.array(len(arrays))}


def _plaid() -> np.ndarray:
    """A picture (60, 90, 3) that has to be resized, with gradients and edges in all colours."""
    row, column = np.mgrid[:60, :90]
    channels = (row * 4, column * 2, 255 * ((row // 12 + column // 18) % 2))
    return np.stack(channels, axis=-1).astype(np.uint8)


def _grid(generator: Generator) -> tuple[int, int]:
    """Patches of the pictures that `draw` makes."""
    side = generator.config["data"]["image_size"] // generator.sequence.patch
    return side, side


def _noise(generator: Generator) -> dict[str, np.ndarray]:
    """The noise that `draw` uses for seed 0, to be passed to the other side as numbers."""
    (rows, cols), pool = _grid(generator), generator.sequence.pool
    codec, places = generator.models.codec, range(len(PROMPTS))
    tokens = (rows // pool) * (cols // pool)
    latents = noise_at(0, places, LATENTS, (tokens, codec.latent_dim))
    pixels = noise_at(0, places, PIXELS, (rows * cols, codec.noise_channels))
    return {
        **_listed("latent_noise", latents),
        **_listed("pixel_noise", pixels),
        "token_grid": np.array((rows // pool, cols // pool)),
    }


def _seen(generator: Generator, image: np.ndarray) -> dict[str, np.ndarray]:
    """The encoder's features and the codec's latents of one picture.

    Latents only, if the codec reads pixels: its export has no encoder that only measures pictures.
    """
    models = generator.models
    patches, grids = to_patches([image], generator.sequence)
    if models.codec.reads == "pixels":
        return {"latents": engine.encode(models, generator.params, patches, grids)[0]}

    @jax.jit
    def run(params: Params, patches: Any, grids: Any) -> tuple[jax.Array, ...]:
        features = engine.look(models, params, patches, grids)
        pooled = models.vision.pool(params["vision"], features, grids)
        return features, models.codec.encode(params["codec"], features, grids), pooled

    features, latents, pooled = (x[0] for x in run(generator.params, patches, grids))
    count = int(grids[0].prod())
    kept = count // generator.sequence.pool**2
    return {"features": features[:count], "latents": latents[:kept], "pooled": pooled}


def _scored(generator: Generator) -> dict[str, np.ndarray]:
    """Logits after the first prompt, and the velocity at the noise for a picture after it."""
    models, pool = generator.models, generator.sequence.pool
    document = build_prefix(
        [Text(PROMPTS[0])], generator.tokenizer, generator.sequence, VISION_START
    )
    prefixes = collate([document], generator.sequence)
    grids = np.array([_grid(generator)], np.int32) // pool
    seats = grids // generator.sequence.fold
    tokens, slots_taken = int(grids[0].prod()), int(seats[0].prod())
    ends, kind = (prefixes.lengths, prefixes.next_positions), generator.sequence.image_positions
    slots = image_slots(*ends, seats, slots_taken, prefixes.slots, kind)
    (noise,) = noise_at(0, [0], LATENTS, (tokens, models.codec.latent_dim))
    hidden, cache = engine.read(
        models, generator.params, prefixes.batch, None, prefixes.lengths - 1,
        models.new_cache(1, prefixes.slots + slots_taken), np.int32(0),
    )  # fmt: skip

    @jax.jit
    def run(params: Params, hidden: Any, cache: Any, noise: Any) -> tuple[jax.Array, ...]:
        own, pathway, start = params["unified"], models.unified, prefixes.slots
        context = pathway.begin_drawing(own, cache, slots.positions, slots.mask, grids, start)
        speed = pathway.velocity(own, context, noise, jnp.array([TIME]))
        return pathway.logits(own, hidden)[0], speed[0]

    logits, velocity = run(generator.params, hidden, cache, noise[None])
    return {"logits": logits, "velocity": velocity}
