"""The sequence format of a configuration: how pictures become slots, and the marks of a turn."""

from __future__ import annotations

import dataclasses

from data_pipelines.images import ImagePolicy
from data_pipelines.segments import UNDERSTOOD
from unicom_jax.core.batch import Role
from unicom_jax.core.image_policies import SQUARE
from unicom_jax.core.positions import image_positions

UNCONDITIONAL = ("empty", "masked")
EDIT_WORDS = ("after", "before")  # the source
# The roles under which an image is written, by its purpose and the configuration's choice.
UNDERSTANDING: dict[str, tuple[Role, ...]] = {
    "features": (Role.UNDERSTAND,),
    "latents": (Role.UNDERSTAND,),  # the model decides which of its streams fills these
    "channel_concat": (Role.UNDERSTAND,),
    "sequence_concat": (Role.UNDERSTAND, Role.CLEAN),
}
EDIT_SOURCE: dict[str, tuple[Role, ...]] = {
    "latents": (Role.CLEAN,),
    "features": (Role.UNDERSTAND,),
    "both": (Role.UNDERSTAND, Role.CLEAN),
}


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """How segments are written.

    Attributes:
      patch: pixels on a side of a patch.
      images: how pictures are resized.
      understood: how pictures to be understood are resized: "same", or one of `SQUARE` if `images`
        is one of them. The source of an edit is resized as its target, so that both are aligned.
      pool: latents have one token per pool x pool patches (a token-pooling compressor); 1: one per
        patch.
      fold: a slot holds fold x fold latents, so an image takes fold² times fewer slots than it has
        tokens, under every role.
      understanding: what an understood image feeds, a key of `UNDERSTANDING`. "sequence_concat"
        writes features and latents as one bidirectional block, both with the image's positions.
      edit_source: the roles under which the source of an edit is written, a key of `EDIT_SOURCE`.
      edit_words: where the words of an edit are, one of `EDIT_WORDS`. "before": the slots of the
        source can then read the instruction, and they are always equally far from those of the
        edited picture, whatever the length of the instruction.
      cfg_dropout: probability that a drawing document is made unconditional
        (`tasks.choose_dropped`).
      unconditional: the form of such a document. "empty": its prompts are empty and its other words
        are removed. "masked": it keeps its length, see `dropout.mask_words`.
      image_dropout: probability that it loses its pictures but keeps its words.
      noisy_copies: NOISY copies of each drawn image; no copy sees another.
      template_labels: the loss is also on the header of a response (`prompt_close`), and in prompts
        on newlines, the marks of turns and `<|vision_start|>`, as in Cheers' released trainer.
      dummies: training documents without pictures begin with the slots of a black drawn picture,
        which are causal like words. As in Cheers' published trainer.
      image_positions: rotary positions of image slots, a kind of `core.positions.image_positions`.
      prompt_open, prompt_close, response_close: the template of a turn. For example, Qwen's chat
        form is "<|im_start|>user\\n", "<|im_end|>\\n<|im_start|>assistant\\n", "<|im_end|>".
    """

    patch: int = 16
    images: ImagePolicy = ImagePolicy()
    understood: str = "same"
    pool: int = 1
    fold: int = 1
    understanding: str = "features"
    edit_source: str = "latents"
    edit_words: str = "after"
    cfg_dropout: float = 0.1
    image_dropout: float = 0.0
    noisy_copies: int = 1
    template_labels: bool = False
    dummies: bool = False
    image_positions: str = "grid"
    unconditional: str = "empty"
    prompt_open: str = "<|im_start|>"
    prompt_close: str = "<|im_end|>"
    response_close: str = "<|endoftext|>"

    def __post_init__(self) -> None:
        for name, table in (("understanding", UNDERSTANDING), ("edit_source", EDIT_SOURCE)):
            if getattr(self, name) not in table:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown; choose one of {', '.join(table)}"
                )
        for name, values in (("unconditional", UNCONDITIONAL), ("edit_words", EDIT_WORDS)):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown; choose one of {', '.join(values)}"
                )
        if self.pool > 1 and self.understanding == "channel_concat":
            raise ValueError(
                "channel_concat needs one latent a patch; set pool to 1, or another understanding"
            )
        if not 0.0 <= self.cfg_dropout <= 1.0:
            raise ValueError(f"cfg_dropout must be in [0, 1], not {self.cfg_dropout}")
        if not 0.0 <= self.image_dropout <= 1.0 - self.cfg_dropout:
            raise ValueError(
                f"image_dropout is {self.image_dropout}; it must be between 0 and 1 - cfg_dropout"
            )
        if self.noisy_copies < 1:
            raise ValueError(f"noisy_copies must be at least 1, not {self.noisy_copies}")
        image_positions(0, 1, 1, self.image_positions)  # raises if there is no such kind
        self.images.target_size(1, 1, self.patch * self.unit)  # raises if the sizes do not agree
        if self.understood != "same" and not (self.images.square and self.understood in SQUARE):
            raise ValueError(
                f"understood {self.understood!r} does not go with {self.images.kind!r} pictures; "
                f'choose "same", or both of {", ".join(SQUARE)}'
            )

    @property
    def unit(self) -> int:
        """Patches per side of a slot, which divides both sides of the patch grid."""
        return self.pool * self.fold

    @property
    def max_patches(self) -> int:
        """N of the batch: the most patches a picture can have."""
        return self.images.max_patches(self.patch, self.unit)

    def policy_of(self, role: str) -> ImagePolicy:
        """How a picture is resized; `role` is that of its `segments.Image`."""
        if role != UNDERSTOOD or self.understood == "same":
            return self.images
        return dataclasses.replace(self.images, kind=self.understood)

    def token_grid(self, rows: int, cols: int, role: Role) -> tuple[int, int]:
        """(rows, columns) of slots that an image of rows x cols patches takes under a role."""
        pooled = role != Role.UNDERSTAND or self.understanding == "latents"
        side = self.unit if pooled else self.fold
        return rows // side, cols // side
