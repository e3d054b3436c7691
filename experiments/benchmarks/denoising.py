"""What can be known of a noisy latent of Scenes at each flow time, and what a prompt adds.

    python -m experiments.benchmarks.denoising --workdir=RUN [--scenes=2016]
                                               [--draws=300] [--seed=0]

RUN has an autoencoder that the run trained; no model is needed. All numbers are flow losses as in
training (`unified.prediction`, `unified.time_floor`), to which those of a model can be compared:

    affine     the best affine map of a whole noisy picture, on random scenes of the configuration;
               fitted to three quarters of them, and measured on the rest
    exact      the mean of all scenes of one object, weighted by how well each explains the noisy
               picture: no model of such scenes can do better
    prompted   the same over scenes of the object's own shape and colour, which a prompt names

A second table has the distances between latents of scenes that differ in one respect, in standard
deviations of the noise.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.images import patchify
from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import (
    LETTER,
    PLACES,
    Scene,
    SceneConfig,
    SceneObject,
    random_stream,
    sample_scene,
)
from unicom_jax.config import ConfigError
from unicom_jax.core.flow import sample_time
from unicom_jax.core.paths import as_path
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import build_latents
from unicom_jax.families.images import Prediction
from unicom_jax.runs import weights
from unicom_jax.runs.autoencoder import load_trained
from unicom_jax.runs.items import CheckpointError

TIMES = (0.01, 0.03, 0.05, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.4, 0.5)
RESPECTS = ("shape", "colour", "place", "background")
BATCH = 126  # pictures that are encoded at a time
RIDGES = (0.0, 0.02, 0.05, 0.1)  # shares of the mean variance added to a covariance


def affine_loss(fitted: np.ndarray, held: np.ndarray, time: float) -> float:
    """Mean squared error of the best affine map from z_t to z_1: pictures (n, d), fitted to the
    first and measured on the second, exactly over the noise. Of `RIDGES` the best one counts."""
    mean, eye = fitted.mean(0), np.eye(fitted.shape[1])
    known, met = ((x - mean).T @ (x - mean) / len(x) for x in (fitted, held))
    noise, errors = (1 - time) ** 2 * eye, []
    for ridge in RIDGES:
        variance = (1 - ridge) * known + ridge * np.trace(known) / len(eye) * eye
        gain = np.linalg.solve(time**2 * variance + noise, time * variance).T
        seen = time**2 * met + noise
        errors.append(np.trace(met - 2 * time * gain @ met + gain @ seen @ gain.T) / len(eye))
    return float(min(errors))


def exact_losses(
    pictures: np.ndarray, kinds: np.ndarray, time: float, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Mean squared errors of the posterior mean of z_1 given z_t, for equally frequent pictures
    (n, d): among all of them, and among those of the drawn picture's own kind."""
    drawn = rng.integers(0, len(pictures), draws)
    noisy = time * pictures[drawn] + (1 - time) * rng.standard_normal((draws, pictures.shape[1]))
    squares = np.sum(pictures**2, axis=1)
    fits = (time * noisy @ pictures.T - 0.5 * time**2 * squares) / (1 - time) ** 2
    own = np.where(kinds[drawn][:, None] == kinds[None], fits, -np.inf)
    errors = []
    for scores in (fits, own):
        shares = np.exp(scores - scores.max(1, keepdims=True))
        mean = shares @ pictures / shares.sum(1, keepdims=True)
        errors.append(float(np.mean((mean - pictures[drawn]) ** 2)))
    return errors[0], errors[1]


def nearest(pictures: np.ndarray, labels: np.ndarray, respect: int) -> np.ndarray:
    """For each picture the distance to the nearest one that differs from it in one label alone."""
    others = np.delete(labels, respect, axis=1)
    found = []
    for picture, label, other in zip(pictures, labels, others, strict=True):
        alike = np.all(others == other, axis=1) & (labels[:, respect] != label[respect])
        found.append(np.sqrt(np.sum((pictures[alike] - picture) ** 2, axis=1)).min())
    return np.array(found)


def scenes_of_one(scenes: SceneConfig) -> tuple[list[Scene], np.ndarray]:
    """All scenes of one object in the middle of its place, and their labels (n, `RESPECTS`)."""
    shapes = [(shape, "") for shape in scenes.shapes if shape != LETTER]
    shapes += [(LETTER, letter) for letter in scenes.letters if LETTER in scenes.shapes]
    values = (shapes, scenes.colours, tuple(PLACES), scenes.backgrounds)
    labels = np.array(list(itertools.product(*(range(len(some)) for some in values))))
    found = []
    for (shape, letter), colour, place, ground in itertools.product(*values):
        one = SceneObject(shape, colour, scenes.object_sizes[0], *PLACES[place], letter)
        found.append(Scene((one,), ground, *scenes.sizes[0]))
    return found, labels


def encode(config: Mapping[str, Any], params: Any, scenes: Sequence[Scene]) -> np.ndarray:
    """Their normalised latents, each picture one vector."""
    codec, patch = build_latents(config), config["data"]["patch"]
    run = jax.jit(lambda pixels, grids: codec.encode(params, to_unit(pixels), grids))
    height, width = (side // patch for side in (scenes[0].height, scenes[0].width))
    grids, found = np.tile(np.int32([height, width]), (BATCH, 1)), []
    for start in range(0, len(scenes), BATCH):
        pixels = np.stack([patchify(render(one), patch) for one in scenes[start : start + BATCH]])
        filled = np.resize(pixels, (BATCH, *pixels.shape[1:]))
        found.append(np.asarray(run(filled, grids))[: len(pixels)])
    latents = np.concatenate(found).astype(np.float64)
    return latents.reshape(len(latents), -1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.denoising")
    parser.add_argument("--workdir", required=True, metavar="RUN")
    parser.add_argument("--scenes", type=int, default=2016, help="random ones")
    parser.add_argument("--draws", type=int, default=300, help="for each exact number")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if min(options.scenes, options.draws) < 4:
        parser.error("--scenes and --draws: must be at least 4")
    try:
        Console(soft_wrap=True).print(*_tables(options), sep="\n")
    except (CheckpointError, ConfigError, OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error


def _tables(options: argparse.Namespace) -> tuple[Table, Table]:
    """Losses by flow time, and distances.

    Raises:
      CheckpointError: a folder without a run, or a run without an autoencoder.
    """
    workdir = as_path(options.workdir)
    config, _ = weights.describe(workdir)
    params, unified = load_trained(config, workdir), config["unified"]
    fields = config["data"]["scenes"].items()  # JSON has only lists
    scenes = SceneConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields})
    streams = (random_stream(options.seed, index, "scene") for index in range(options.scenes))
    mixed = encode(config, params, [sample_scene(scenes, stream) for stream in streams])
    single, labels = scenes_of_one(scenes)
    pictures, held = encode(config, params, single), np.arange(len(mixed)) % 4 == 3
    kinds = labels[:, 0] * len(scenes.colours) + labels[:, 1]
    rng = np.random.default_rng(options.seed)
    floor = Prediction(unified["prediction"], unified["time_floor"]).loss_floor
    rows = []
    for time in TIMES:
        errors = (
            affine_loss(mixed[~held], mixed[held], time),
            *exact_losses(pictures, kinds, time, options.draws, rng),
        )
        rows.append([error / max(1 - time, floor) ** 2 for error in errors])
    how = unified["time"], unified["time_shift"]
    drawn = np.asarray(sample_time(jax.random.key(options.seed), (100_000,), *how))
    return loss_table(rows, drawn), distance_table(pictures, labels)


def loss_table(rows: Sequence[Sequence[float]], drawn: np.ndarray) -> Table:
    """Losses at each of `TIMES`, and their means over times that training has `drawn`."""
    table = Table("t", "affine", "exact", "prompted", title="flow loss")
    for time, row in zip(TIMES, rows, strict=True):
        table.add_row(f"{time}", *(f"{value:.3f}" for value in row))
    for low, high in ((0.0, 0.25), (0.25, 0.5)):
        some = drawn[(drawn >= low) & (drawn < high)]
        if not len(some):
            continue
        means = (np.interp(some, TIMES, column).mean() for column in zip(*rows, strict=True))
        name = f"times of training, {low} to {high}: {len(some) / len(drawn):.0%}"
        table.add_row(name, *(f"{value:.3f}" for value in means))
    return table


def distance_table(pictures: np.ndarray, labels: np.ndarray) -> Table:
    """Distances to the nearest picture that differs in one of `RESPECTS`, where any does."""
    table = Table("to another", "median", "5%", "95%", title="distance of latents")
    for number, respect in enumerate(RESPECTS):
        if np.ptp(labels[:, number]):
            some = nearest(pictures, labels, number)
            table.add_row(respect, *(f"{np.percentile(some, x):.1f}" for x in (50, 5, 95)))
    return table


if __name__ == "__main__":
    main()
