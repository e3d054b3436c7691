"""A model that answers by rule and a run folder made up of numbers, so that no test trains."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from data_pipelines.examples import Edit, Example, Question
from unicom_jax.evaluation.generation import Prompt
from unicom_jax.evaluation.intervals import mean_interval, wilson
from unicom_jax.evaluation.records import (
    Answer,
    Caption,
    Editing,
    Generation,
    Reconstruction,
    write_records,
)
from unicom_jax.evaluation.scores import Score, flatten, write_scores

SIDE = 32
COLOURS = {"red": (222, 36, 40), "green": (40, 164, 72), "blue": (40, 82, 220)}


def square(colour: str, x: int = 8, y: int = 8, side: int = SIDE) -> np.ndarray:
    """A picture with one coloured square whose corner is at (x, y)."""
    image = np.full((side, side, 3), 245, np.uint8)
    image[y : y + side // 2, x : x + side // 2] = COLOURS[colour]
    return image


def examples(count: int = 6) -> list[Example]:
    """Squares of three colours with a caption, two questions and an edit each."""
    names = list(COLOURS)
    made = []
    for index in range(count):
        colour, other = names[index % 3], names[(index + 1) % 3]
        x, y = 2 * (index % 7), 3 * (index % 5)
        target = square(other, x, y)
        made.append(
            Example(
                key=f"squares/{index}",
                image=square(colour, x, y),
                captions=(f"a {colour} square", f"one square that is {colour}"),
                questions=(
                    Question("what colour is the square?", colour, "colour"),
                    Question("how many objects are there?", "one", "count"),
                ),
                edits=(Edit(f"make the square {other}", target, "recolour"),),
            )
        )
    return made


def colour_of(image: np.ndarray) -> str:
    """The colour of the square in a picture of `square`."""
    inside = image[image.min(axis=-1) < 200].astype(float)
    mean = inside.mean(axis=0) if len(inside) else np.full(3, 255.0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum()))


def prompts() -> list[Prompt]:
    """Prompts of two categories, each judged by the colour of the square."""

    def judge_of(colour):
        def judge(image):
            return (True, "") if colour_of(image) == colour else (False, f"no {colour} square")

        return judge

    return [
        Prompt(
            category, f"a {colour} square", judge_of(colour), lambda colour=colour: square(colour)
        )
        for category in ("single", "colours")
        for colour in COLOURS
    ]


class PerfectModel:
    """Does everything right on `examples`, and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    without_details = None
    fingerprint = "of perfect features"

    @property
    def encoder(self) -> PerfectModel:
        return self

    def answer(self, images, questions, *, max_tokens, temperature, seed, first):
        self.calls.append(("answer", len(images)))
        return [
            colour_of(image).upper() + "." if "colour" in question else "one"
            for image, question in zip(images, questions, strict=True)
        ]

    def caption(self, images, *, max_tokens, temperature, seed, first):
        self.calls.append(("caption", len(images)))
        return [f"A {colour_of(image)} square." for image in images]

    def draw(
        self, prompts, *, size, think, steps, guidance, guidance_interval, sampler, grid, seed,
        first,
    ):  # fmt: skip
        self.calls.append(("draw", len(prompts)))
        colours = [next(c for c in COLOURS if c in prompt) for prompt in prompts]
        return [SimpleNamespace(image=square(colour), thought="") for colour in colours]

    def edit(
        self, images, instructions, *, steps, guidance, guidance_interval, sampler, grid,
        edit_start, seed, first,
    ):  # fmt: skip
        self.calls.append(("edit", len(images)))
        edited = []
        for image, text in zip(images, instructions, strict=True):
            copy = image.copy()
            copy[image.min(axis=-1) < 200] = COLOURS[text.split()[-1]]
            edited.append(copy)
        return edited

    def reconstruct(self, images, *, seed, first):
        self.calls.append(("reconstruct", len(images)))
        return [image.copy() for image in images]

    def prepared(self, image):
        return image

    def features(self, images):
        return np.stack([image.reshape(4, -1, 4, 3).mean(axis=(1, 2)).ravel() for image in images])


class BlindModel(PerfectModel):
    """Says and draws the same whatever it is given."""

    def answer(self, images, questions, *, max_tokens, temperature, seed, first):
        return ["red"] * len(images)

    def caption(self, images, *, max_tokens, temperature, seed, first):
        return [""] * len(images)

    def draw(
        self, prompts, *, size, think, steps, guidance, guidance_interval, sampler, grid, seed,
        first,
    ):  # fmt: skip
        return [SimpleNamespace(image=np.full((SIDE, SIDE, 3), 128, np.uint8))] * len(prompts)

    def edit(
        self, images, instructions, *, steps, guidance, guidance_interval, sampler, grid,
        edit_start, seed, first,
    ):  # fmt: skip
        return [np.full_like(image, 128) for image in images]

    def reconstruct(self, images, *, seed, first):
        return [np.full_like(image, 128) for image in images]


def fake_scores() -> dict[str, float | int | None]:
    """Scores as a short training might leave them; one of them is worse than chance."""
    rng = np.random.default_rng(0)
    psnr, untrained = rng.normal(22.4, 3.0, 128), rng.normal(9.1, 1.0, 128)
    scores = [
        Score("reconstruction/psnr", mean_interval(psnr), 128, 11.8),
        Score("reconstruction/ssim", mean_interval(rng.normal(0.83, 0.06, 128)), 128, 0.61),
        Score("reconstruction/kid", mean_interval(rng.normal(0.042, 0.03, 128)), 128),
    ]
    blind = [
        Score("reconstruction/psnr", mean_interval(untrained), 128),
        Score("reconstruction/ssim", mean_interval([0.11, 0.13]), 128),
        Score("reconstruction/kid", mean_interval([0.6, 0.62]), 128),
    ]
    rates = {
        "generation/single": (17, 20, 0.06),
        "generation/two": (12, 20, 0.03),
        "generation/counting": (9, 20, 0.22),
        "generation/colours": (15, 20, 0.12),
        "generation/position": (6, 20, 0.1),
        "generation/binding": (5, 20, 0.02),
        "generation/overall": (64, 120, 0.09),
        "understanding/qa": (190, 256, 0.36),
        "understanding/qa/colour": (41, 43, 0.16),
        "understanding/qa/count": (30, 43, 0.42),
        "understanding/qa/yesno": (20, 43, 0.53),
        "understanding/caption": (30, 64, 0.02),
        "editing/success": (31, 60, 0.0),
        "editing/reached": (38, 60, 0.02),
        "editing/unchanged": (44, 60, 1.0),
    }
    scores += [Score(k, wilson(s, n), n, c) for k, (s, n, c) in rates.items()]
    blind += [Score(k, wilson(0, n), n) for k, (_, n, _) in rates.items()]
    return flatten(scores, blind)


def fake_about() -> dict[str, object]:
    """How `fake_scores` were made."""
    return {
        "split": "test",
        "data": "scenes",
        "trained_on": False,
        "policy": "fixed",
        "checkpoints": {"vision": "encoder 300", "codec": "codec 500", "unified": "pretrain 600"},
        "shapes": {"32 x 32": 128},
        "judge": "the exact judge of the data",
        "steps": 20,
        "guidance": 3.0,
        "guidance_interval": [0.0, 1.0],
        "sampler": "euler",
        "grid": "even",
        "edit_start": 0.0,
        "think": False,
        "seed": 0,
        "answer_rule": "exact",
    }


def write_fake_run(workdir: Path) -> Path:
    """A run folder with everything that a report shows."""
    rng = np.random.default_rng(1)
    workdir.mkdir(parents=True, exist_ok=True)
    config = {"name": "quickstart", "seed": 0, "stages": ["encoder", "codec", "unified"]}
    (workdir / "config.json").write_text(json.dumps(config))
    write_scores(workdir / "scores.json", fake_scores(), fake_about())
    _write_stage(workdir / "unified", {"flow": 1.1, "text": 5.2}, 600, rng)
    _write_stage(workdir / "encoder", {"contrastive": 4.1}, 300, rng)
    codec = {"latent_mean": list(rng.normal(0, 0.3, 32)), "latent_std": list(rng.gamma(6, 0.2, 32))}
    _write_stage(workdir / "codec", {"flow": 0.9, "feature": 0.7}, 500, rng, codec)
    _write_fake_records(workdir / "evaluation", rng)
    return workdir


def _write_stage(folder: Path, terms: dict[str, float], steps: int, rng, facts=None) -> None:
    folder.mkdir()
    lines = []
    for step in range(5, steps + 1, 5):
        losses = {
            f"loss/{term}": start * (0.12 + math.exp(-5 * step / steps)) * rng.lognormal(0, 0.08)
            for term, start in terms.items()
        }
        row = {"step": step, "time": step * 0.21, "loss": sum(losses.values()), **losses}
        row |= {"learning_rate": 1e-3 * min(1, step / 50) * (1 - step / steps) + 1e-6, "skipped": 0}
        row |= {"tokens_per_second": rng.normal(21e3, 900), "data_wait": rng.uniform(0.01, 0.03)}
        lines.append(row)
        if step % 50 == 0:
            lines.append({"step": step} | {f"eval/{t}": losses[f"loss/{t}"] * 1.05 for t in terms})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts = {"encoder": 1_204_224, "compressor": 91_328, "pixel_decoder": 2_311_040}
    parts |= {"transformer": 4_870_144, "flow_head": 310_272} if folder.name == "unified" else {}
    stage = {"parameters": parts, "steps": steps, "seconds": steps * 0.21, **(facts or {})}
    trained = {part: n for part, n in parts.items() if part != "encoder"} | {"compressor": 91_000}
    stage |= {"device": "1 x cpu (cpu)", "tokens_per_second": 20_480.0, "trained": trained}
    (folder / "stage.json").write_text(json.dumps(stage))


def _noisy(image: np.ndarray, rng, scale: float = 12.0) -> np.ndarray:
    return np.clip(image + rng.normal(0, scale, image.shape), 0, 255).astype(np.uint8)


def _write_fake_records(folder: Path, rng) -> None:
    data = examples(12)
    categories = ("single", "two", "counting", "colours", "position", "binding")
    write_records(
        folder,
        {
            "reconstructions": [
                Reconstruction(e.key, e.image, _noisy(e.image, rng), 21.0 + i % 5, 0.8)
                for i, e in enumerate(data)
            ],
            "generations": [
                Generation(
                    e.key, c, e.captions[0], _noisy(e.image, rng), ok, "" if ok else "0 of 1 red"
                )
                for c in categories
                for e, ok in zip(data[:6], rng.random(6) < 0.6, strict=True)
                for ok in [bool(ok)]
            ],
            "edits": [
                Editing(
                    e.key,
                    kind,
                    e.edits[0].instruction,
                    e.image,
                    e.edits[0].target,
                    e.edits[0].target,
                    i % 3 > 0,
                    i % 3 > 0,
                    True,
                    "" if i % 3 else "the square is still red",
                )
                for kind in ("recolour", "remove", "move")
                for i, e in enumerate(data[:4])
            ],
            "answers": [
                Answer(
                    e.key,
                    q.kind,
                    e.image,
                    q.question,
                    q.answer,
                    q.answer if i % 3 else "<two>",
                    float(i % 3 > 0),
                    i % 3 > 0,
                )
                for i, e in enumerate(data[:5])
                for q in e.questions
            ],
            "captions": [
                Caption(
                    e.key,
                    e.image,
                    e.captions[0],
                    e.captions[0] if i % 2 else "a circle",
                    i % 2 > 0,
                    0.5 + 0.5 * (i % 2),
                )
                for i, e in enumerate(data[:6])
            ],
        },
    )
