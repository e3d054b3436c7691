"""`Generator`: a trained model as functions of pictures and words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from data_pipelines.sequences.tasks import BRIEFLY, SOURCE, UNDERSTOOD, Image, Segment, Text
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.picture import Picture
from unicom_jax.inference import engine
from unicom_jax.inference.arrays import in_batches, noise_at, prepared, to_patches, to_pictures
from unicom_jax.inference.conversations import Conversations
from unicom_jax.runs import weights


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture and the plan in words that preceded it ("" without one)."""

    image: Picture
    thought: str = ""


class Generator(Conversations):
    """Captions, answers, pictures and edits; `write`, `paint` and `respond` continue conversations.

    Made by `load` or `untrained`; arguments as of `Conversations`.
    """

    @classmethod
    def load(cls, workdir: str | Path, step: str = "") -> Generator:
        """Weights of a training directory.

        Args:
          step: of the unified model: a number, "best" (lowest held-out loss), or "": the newest.

        Raises:
          CheckpointError: no such checkpoint there, a damaged one, or one of another version.
          TokenizerError: its tokenizer is missing, damaged or not the one it was trained with.
          ConfigError: its autoencoder, where it has one, is missing or damaged.
        """
        return cls(*weights.load(Path(workdir), weights.Choice(step=step)))

    @classmethod
    def untrained(cls, config: Mapping[str, Any], tokenizer: Tokenizer, seed: int = 0) -> Generator:
        """The same model with random weights, an autoencoder's too: the baseline of every score."""
        return cls(config, tokenizer, weights.untrained(config, seed))

    def answer(
        self,
        images: Sequence[Picture],
        questions: Sequence[str],
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Answers question i about picture i."""
        prompts = [
            [Image(image, UNDERSTOOD), Text(question)]
            for image, question in zip(images, questions, strict=True)
        ]
        write = partial(
            self.write, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        return write(prompts)

    def caption(
        self, images: Sequence[Picture], *, prompt: str = BRIEFLY, **options: Any
    ) -> list[str]:
        """Describes each picture; options as for `answer`."""
        return self.answer(images, [prompt] * len(images), **options)

    def draw(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        think: bool = False,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        seed: int = 0,
        **plan: Any,
    ) -> list[Drawn]:
        """Draws each prompt.

        Args:
          size: (height, width) in pixels, multiples of the patch; the training size when None.
          think: write a plan first and draw by it.
          steps, guidance, guidance_interval, sampler: as in `Drawing`; None takes the config's.
          seed: the same seed gives the same noise to the same place in the list.
          plan: how the plan is written: max_tokens, temperature, top_p as for `answer`.
        """
        segments: list[list[Segment]] = [[Text(prompt)] for prompt in prompts]
        thoughts = [""] * len(prompts)
        if think:
            thoughts = self.write(segments, opening="<think>", seed=seed, **plan)
            thoughts = [thought.split("</think>")[0] for thought in thoughts]
            segments = [
                [*prompt, Text(f"<think>{thought}</think>", supervised=True)]
                for prompt, thought in zip(segments, thoughts, strict=True)
            ]
        drawn = self.paint(
            segments, size=size, steps=steps, guidance=guidance,
            guidance_interval=guidance_interval, sampler=sampler, seed=seed,
        )  # fmt: skip
        return [Drawn(image, thought) for image, thought in zip(drawn, thoughts, strict=True)]

    def edit(
        self,
        images: Sequence[Picture],
        instructions: Sequence[str],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        seed: int = 0,
    ) -> list[Picture]:
        """Changes picture i as instruction i says; as large as `prepared` makes it."""
        segments = [
            [Image(image, SOURCE), Text(instruction)]
            for image, instruction in zip(images, instructions, strict=True)
        ]
        return self.paint(
            segments, steps=steps, guidance=guidance, guidance_interval=guidance_interval,
            sampler=sampler, seed=seed,
        )  # fmt: skip

    def reconstruct(self, images: Sequence[Picture], *, seed: int = 0) -> list[Picture]:
        """Each picture through encoder, codec and pixel decoder, at the size the encoder saw."""

        def run(batch: list[Picture], first: int) -> list[Picture]:
            patches, grids = to_patches(batch, self.sequence)
            shape = patches.shape[1], self.models.codec.pixel_decoder.channels
            noise = noise_at(seed, range(first, first + len(batch)), shape)
            painted = engine.reconstruct(
                self.models, self.params, patches, grids, noise, codec_steps=self.codec_steps
            )
            return to_pictures(painted, grids, self.sequence.patch)

        return in_batches(run, images, self.batch_size)

    def features(self, images: Sequence[Picture]) -> Float32[np.ndarray, "B F"]:
        """Pooled encoder features."""

        def run(batch: list[Picture], first: int) -> list[np.ndarray]:
            del first
            patches, grids = to_patches(batch, self.sequence)
            return list(
                np.asarray(engine.pooled_features(self.models, self.params, patches, grids))
            )

        return np.stack(in_batches(run, images, self.batch_size))

    def prepared(self, image: Picture) -> Picture:
        """The picture as the encoder sees it: resized under the image policy."""
        return prepared(image, self.sequence)
