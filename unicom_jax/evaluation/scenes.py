"""Scenes as evaluation data: held-out pictures, GenEval's prompts and the exact judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from data_pipelines.examples import Edit, Example
from data_pipelines.scenes import geneval
from data_pipelines.scenes.agreement import Agreement, agreement, score_caption, seen_in
from data_pipelines.scenes.long_captions import score_long, truth_of
from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import Scene, SceneConfig
from data_pipelines.scenes.source import ScenesSource
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.data import DEVELOPMENT, TEST, EvaluationData
from unicom_jax.evaluation.editing import EditVerdict
from unicom_jax.evaluation.generation import Prompt, Verdict
from unicom_jax.evaluation.suite import EvaluationConfig

# Not the run's seed: all runs are scored on the same scenes, on which none was trained.
SEEDS = {DEVELOPMENT: 7_919_417, TEST: 15_485_863}


def scenes_data(
    config: EvaluationConfig,
    scenes: SceneConfig | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    split: str = TEST,
) -> EvaluationData:
    """Held-out scenes, as many as the counts of the configuration need.

    Args:
      config: how much is evaluated.
      scenes: the distribution of scenes in training; its picture sizes are replaced.
      sizes: (height, width) of the pictures in pixels; by default squares of `config.image_size`.
      split: selects one of two independent draws.
    """
    sizes = tuple(sizes) or ((config.image_size, config.image_size),)
    scenes = dataclasses.replace(scenes or SceneConfig(), sizes=sizes)
    seed = SEEDS[split]
    source = ScenesSource(scenes, seed, max(config.examples, 1), config.edits > 0)

    def judge_edit(example: Example, edit: Edit, before: Picture, after: Picture) -> EditVerdict:
        del edit  # a scene has only one
        verdict = geneval.edit_verdict(before, after, source.edit(_place(example)))
        return EditVerdict(verdict.reached, verdict.kept, verdict.reason)

    def judge_caption(text: str, example: Example) -> bool:
        return geneval.caption_verdict(text, source.scene(_place(example))).correct

    # A description should be like the data's most detailed caption: the long one, if there is one.
    score = score_long if scenes.long_captions else score_caption

    def judge_facts(text: str, example: Example) -> Agreement:
        return score(text, truth_of(source.scene(_place(example))))

    prompts = [
        _prompt(prompt, scene)
        for category in geneval.CATEGORIES
        for scene, prompt in geneval.cases(category, config.prompts, seed, scenes)
    ]
    return EvaluationData(
        examples=source if config.examples else [],
        prompts=prompts,
        judge_edit=judge_edit,
        judge_caption=judge_caption,
        judge_drawing=lambda picture, drawn: agreement(seen_in(picture), seen_in(drawn)),
        judge_facts=judge_facts,
    )


def _place(example: Example) -> int:
    """The index of an example in its source, the last part of its key."""
    return int(example.key.rpartition("/")[2])


def _prompt(prompt: geneval.Prompt, scene: Scene) -> Prompt:
    def judge(image: Picture) -> Verdict:
        verdict = geneval.verdict(image, prompt)
        return verdict.correct, verdict.reason

    return Prompt(prompt.category, prompt.text, judge, partial(render, scene))
