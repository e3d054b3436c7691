"""Scenes as a random-access source of Examples, each a pure function of (config, seed, index)."""

from __future__ import annotations

import dataclasses
import operator

from data_pipelines.examples import Edit, Example
from data_pipelines.scenes.edits import SceneEdit, sample_edit
from data_pipelines.scenes.language import captions, thought
from data_pipelines.scenes.long_captions import long_caption
from data_pipelines.scenes.questions import questions
from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import Scene, SceneConfig, random_stream, sample_scene


@dataclasses.dataclass(frozen=True)
class ScenesSource:
    """`size` examples; record i depends on (config, seed, i) alone. Can be pickled, and passed to
    `grain.MapDataset.source`.

    Attributes:
      config: distribution of the scenes.
      seed: sources with different seeds are independent draws, so train and evaluate with
        different ones.
      size: number of records.
      with_edits: also make one edit per record (its target is a second drawing, which takes about
        as long as the first).
    """

    config: SceneConfig = SceneConfig()
    seed: int = 0
    size: int = 100_000
    with_edits: bool = False

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        """The example at an index; negative indices count from the end.

        Raises:
          IndexError: the index is out of range.
        """
        index = self._checked(index)
        scene = self.scene(index)
        rng = random_stream(self.seed, index, "words")
        long = (long_caption(scene),) if self.config.long_captions else ()
        edits: tuple[Edit, ...] = ()
        if self.with_edits and (edit := self._edit(index)) is not None:
            after = captions(edit.after, random_stream(self.seed, index, "edited words"))[0]
            edits = (Edit(edit.instruction, render(edit.after), edit.kind, after),)
        return Example(
            key=f"scenes/{self.seed}/{index}",
            image=render(scene),
            captions=(*captions(scene, rng), *long),
            questions=questions(scene, self.config, rng),
            edits=edits,
            thought=thought(scene),
        )

    def scene(self, index: int) -> Scene:
        """The true scene behind a record, for the judge."""
        return sample_scene(self.config, random_stream(self.seed, self._checked(index), "scene"))

    def edit(self, index: int) -> SceneEdit:
        """The edit of a record with its scenes, for the judge.

        Raises:
          ValueError: the configuration allows no edit of this scene.
        """
        edit = self._edit(self._checked(index))
        if edit is None:
            raise ValueError(f"record {index}: its scene allows no edit; give at least two colours")
        return edit

    def _edit(self, index: int) -> SceneEdit | None:
        return sample_edit(self.scene(index), self.config, random_stream(self.seed, index, "edit"))

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not -self.size <= index < self.size:
            raise IndexError(f"ScenesSource has {self.size} records, asked for {index}")
        return index % self.size
