"""Sample pictures and generation scores of a unified stage while it is trained.

The engine is that of `unicom sample` and `unicom evaluate`, on the mesh and with the weights of the
training. Scores are computed on the development split, so that the test split stays unseen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unicom_jax.core.module import Params
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.command import data_of
from unicom_jax.evaluation.data import DEVELOPMENT
from unicom_jax.evaluation.generation import evaluate_generation
from unicom_jax.evaluation.suite import EvaluationConfig, first_of_each
from unicom_jax.families.build import family_of
from unicom_jax.inference.generator import Generator
from unicom_jax.models.paint_space import AUTOENCODER
from unicom_jax.runs import weights
from unicom_jax.runs.stages import PARTS, START

SHOWN = 4  # prompts that are drawn if `sample.watched` names none

# (step, weights for inference) -> numbers and pictures by name.
Observer = Callable[[int, Params], tuple[Mapping[str, float], Mapping[str, Picture]]]


def make_observer(config: Any, workdir: Path, mesh: Any, frozen: Params) -> Observer:
    """An observer that draws `sample.watched`, and draws and judges `sample.scored` prompts of each
    category.

    Weights for painting pixels that training itself does not use are read from the codec's
    checkpoint. All processes of a run have to call the observer in the same way.

    Args:
      frozen: the stage's frozen weights.

    Raises:
      CheckpointError: the codec's checkpoint is missing or damaged.
      SourceError: there is too little data to score on.
    """
    _, tokenizer = weights.describe(workdir)
    held = _held(config, workdir, mesh, frozen)
    settings = EvaluationConfig.of(config)
    settings = dataclasses.replace(settings, shown=0, pictures=0, questions=0, edits=0)
    scored = config["sample"]["scored"]
    judged = first_of_each(
        data_of(config, dataclasses.replace(settings, prompts=scored), DEVELOPMENT).prompts
        if scored or not config["sample"]["watched"]
        else (),
        lambda prompt: prompt.category,
        max(scored, 1),
    )
    shown = list(config["sample"]["watched"]) or [prompt.text for prompt in judged[:SHOWN]]

    def observe(step: int, params: Params) -> tuple[dict[str, float], dict[str, Picture]]:
        del step  # the same noise every time, so that pictures can be compared
        generator = Generator(config, tokenizer, {**held, "unified": params}, mesh)
        drawn = generator.draw(shown, seed=config["seed"]) if shown else []
        pictures = {
            f"sample/{place} {text}": one.image
            for place, (text, one) in enumerate(zip(shown, drawn, strict=True))
        }
        scores = evaluate_generation(generator, judged, settings).scores if scored else []
        return {score.name: score.interval.value for score in scores}, pictures

    return observe


def _held(config: Any, workdir: Path, mesh: Any, frozen: Params) -> dict[str, Params]:
    """The trees of a model, except its own weights: those in `frozen`, and the others from
    checkpoints."""
    family = family_of(config)

    def read(*path: str) -> Params:
        return weights.restore(workdir, config, only=path, mesh=mesh)

    if START in frozen:  # a stage that samples has read the whole model
        return {**{tree: frozen[tree] for tree in family.in_model}, **read(AUTOENCODER)}
    held = {}
    for tree, of in family.in_model.items():
        known = {wanted: frozen[name] for name, wanted in family.frozen.items()}
        part = next((wanted for wanted in known if wanted.part == of.part), None)
        if of in known:
            held[tree] = known[of]
        elif part is None:
            held |= read(tree)
        else:  # some keys of a complete tree
            specs = PARTS[of.part].build(config).specs()
            others = specs.keys() - set(part.read(specs))
            rest = {key: read(tree, key)[tree][key] for key in sorted(others)}
            held[tree] = {**part.placed(known[part]), **rest}
    return {**held, **read(AUTOENCODER)}
