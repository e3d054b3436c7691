"""Scenes as evaluation data: held-out pictures, GenEval's prompts and the exact judge."""

from __future__ import annotations

import dataclasses

from data_pipelines.examples import Edit, Example
from data_pipelines.scenes import geneval
from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.scenes.source import ScenesSource
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.data import EvaluationData
from unicom_jax.evaluation.editing import EditVerdict
from unicom_jax.evaluation.generation import Prompt, Verdict
from unicom_jax.evaluation.suite import EvaluationConfig

# Not the run's seed: all runs are scored on the same scenes, and none was trained on them.
HELD_OUT_SEED = 7_919_417


def scenes_data(config: EvaluationConfig, scenes: SceneConfig | None = None) -> EvaluationData:
    """Held-out scenes of `config.image_size`, as many as the counts of the configuration need.

    Args:
      config: how much is evaluated.
      scenes: the distribution of scenes the model was trained on; its picture sizes are replaced.
    """
    size = (config.image_size, config.image_size)
    scenes = dataclasses.replace(scenes or SceneConfig(), sizes=(size,))
    source = ScenesSource(scenes, HELD_OUT_SEED, max(config.examples, 1), config.edits > 0)
    examples = [source[index] for index in range(config.examples)]
    places = {example.key: index for index, example in enumerate(examples)}

    def judge_edit(example: Example, edit: Edit, before: Picture, after: Picture) -> EditVerdict:
        del edit  # a scene has one
        verdict = geneval.edit_verdict(before, after, source.edit(places[example.key]))
        return EditVerdict(verdict.reached, verdict.kept, verdict.reason)

    def judge_caption(text: str, example: Example) -> bool:
        return geneval.caption_verdict(text, source.scene(places[example.key])).correct

    prompts = [
        _prompt(prompt, render(scene))
        for category in geneval.CATEGORIES
        for scene, prompt in geneval.cases(category, config.prompts, HELD_OUT_SEED, scenes)
    ]
    return EvaluationData(examples, prompts, judge_edit, judge_caption)


def _prompt(prompt: geneval.Prompt, reference: Picture) -> Prompt:
    def judge(image: Picture) -> Verdict:
        verdict = geneval.verdict(image, prompt)
        return verdict.correct, verdict.reason

    return Prompt(prompt.category, prompt.text, judge, reference)
