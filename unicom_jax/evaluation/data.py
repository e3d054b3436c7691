"""What is evaluated on: pictures with texts, prompts, and the judges that the data set has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data_pipelines.examples import Example
from unicom_jax.evaluation.editing import EditJudge, judge_pixels
from unicom_jax.evaluation.generation import Prompt
from unicom_jax.evaluation.understanding import CaptionJudge


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Held-out examples with their judges.

    Attributes:
      examples: pictures with captions, and questions and edits where the data set has them.
      prompts: judged prompts. Without any, drawings are looked up by retrieval instead.
      judge_edit: says whether an edit succeeded; by default from the pixels of the true target.
      judge_caption: says whether a caption in other words is true; None: only stored ones count.
    """

    examples: Sequence[Example]
    prompts: Sequence[Prompt] = ()
    judge_edit: EditJudge = judge_pixels
    judge_caption: CaptionJudge | None = None
