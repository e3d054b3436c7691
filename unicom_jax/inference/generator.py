"""`Generator`: a trained model as functions of pictures and words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Float32

from data_pipelines.segments import SOURCE, UNDERSTOOD, Image, Segment, Text
from data_pipelines.sequences.tasks import BRIEFLY
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.paths import as_path
from unicom_jax.core.picture import Picture
from unicom_jax.inference.conversations import Conversations
from unicom_jax.inference.picture_encoder import PictureEncoder
from unicom_jax.inference.requests import Conversation, as_pictures, as_texts, paired
from unicom_jax.inference.session import Session
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs import weights


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A picture and the plan in words that preceded it ("" without one)."""

    image: Picture
    thought: str = ""


class Generator(Conversations):
    """Captions, answers, pictures and edits; `write`, `paint` and `respond` continue conversations.

    Every method takes a list and returns one in the same order; a single string or picture counts
    as a list of one. Made by `load` or `untrained`; arguments as for `Conversations`.
    """

    @classmethod
    def load(cls, workdir: str | Path, step: str = "", mesh: str | None = None) -> Generator:
        """Weights of a training directory, read straight onto their devices in the compute dtype.

        Args:
          step: that of the unified model: a number, "best" (lowest held-out loss), or "" (newest).
          mesh: how weights and batches are spread over the devices, in the form of `parallel.mesh`;
            None: over all of them ("fsdp=-1").

        Raises:
          CheckpointError: the checkpoint does not exist, is damaged, or has another version.
          TokenizerError: its tokenizer is missing, damaged or not the one it was trained with.
          ConfigError: its autoencoder, if it has one, is missing or damaged.
          ValueError: the mesh does not fit the devices.
        """
        devices = make_mesh(mesh or "fsdp=-1", jax.devices())
        config, tokenizer = weights.describe(as_path(workdir))
        params = weights.restore(
            as_path(workdir), config, weights.Choice(step=step), mesh=devices, for_use=True
        )
        return cls(config, tokenizer, params, devices)

    @classmethod
    def untrained(
        cls,
        config: Mapping[str, Any],
        tokenizer: Tokenizer,
        seed: int = 0,
        mesh: str | None = None,
    ) -> Generator:
        """The same model with random weights, including its autoencoder: the baseline for scores.

        `mesh`: as for `load`.
        """
        devices = make_mesh(mesh or "fsdp=-1", jax.devices())
        return cls(config, tokenizer, weights.untrained(config, seed, devices), devices)

    def answer(
        self,
        images: Picture | Sequence[Picture],
        questions: str | Sequence[str],
        **options: Any,
    ) -> list[str]:
        """Answers question i about picture i; options as for `write`.

        A single question is asked about every picture, a single picture is shown with every
        question.

        Raises:
          ValueError: the numbers of pictures and questions differ; and as `write`.
        """
        return self.write(
            [
                [Image(image, UNDERSTOOD), Text(question)]
                for image, question in paired(images, questions, "question")
            ],
            **options,
        )

    def caption(
        self, images: Picture | Sequence[Picture], *, prompt: str = BRIEFLY, **options: Any
    ) -> list[str]:
        """Describes each picture; options as for `write`."""
        return self.answer(as_pictures(images), prompt, **options)

    def draw(
        self,
        prompts: str | Sequence[str],
        *,
        size: tuple[int, int] | None = None,
        count: int = 1,
        think: bool = False,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        first: int = 0,
        **drawing: Any,
    ) -> list[Drawn]:
        """Draws each prompt `count` times; these pictures are consecutive in the result.

        Args:
          size, count, seed, first, drawing: as for `paint`.
          think: write a plan first, then draw it; each picture has its own plan.
          max_tokens, temperature, top_p, top_k: how plans are written, as for `write`.

        Raises:
          ValueError: as `paint` and `write`.
        """
        segments: list[list[Segment]] = [
            [Text(prompt)] for prompt in as_texts(prompts) for _ in range(count)
        ]
        thoughts = [""] * len(segments)
        if think:
            thoughts = self.write(
                segments, opening="<think>", max_tokens=max_tokens, temperature=temperature,
                top_p=top_p, top_k=top_k, seed=seed, first=first,
            )  # fmt: skip
            thoughts = [thought.split("</think>")[0] for thought in thoughts]
            segments = [
                [*prompt, Text(f"<think>{thought}</think>", supervised=True)]
                for prompt, thought in zip(segments, thoughts, strict=True)
            ]
        drawn = self.paint(segments, size=size, seed=seed, first=first, **drawing)
        return [Drawn(image, thought) for image, thought in zip(drawn, thoughts, strict=True)]

    def edit(
        self,
        images: Picture | Sequence[Picture],
        instructions: str | Sequence[str],
        **options: Any,
    ) -> list[Picture]:
        """Changes picture i as instruction i says, at the size of `prepared`.

        Options as for `paint`; a single picture or instruction as for `answer`.

        Raises:
          ValueError: the numbers of pictures and instructions differ; and as `paint`.
        """
        return self.paint(
            [
                [Image(image, SOURCE), Text(instruction)]
                for image, instruction in paired(images, instructions, "instruction")
            ],
            **options,
        )

    def session(self) -> Session:
        """A conversation in which each turn is read only once."""
        return Session(self)

    def respond(self, conversation: Conversation, **options: Any) -> list[Segment]:
        """Words and pictures, as the model decides, after one conversation; see `Session`."""
        return self.session().respond(conversation, **options)

    def reconstruct(
        self, images: Picture | Sequence[Picture], *, seed: int = 0, first: int = 0
    ) -> list[Picture]:
        """Encodes each picture to latents and decodes these alone, at the size of `prepared`.

        `seed`, `first`: as for `paint`.
        """
        return self.codec.reconstruct(images, seed=seed, first=first)

    @property
    def without_details(self) -> Generator | None:
        """The same model with a head that draws by semantics alone; None: its head adds no details.

        It shares all other weights, and every compiled program.
        """
        flat = traverse_util.flatten_dict(self.params["unified"], sep="/")
        let_in = re.compile(self.models.family.details)
        if not (gates := [path for path in flat if let_in.fullmatch(path)]):
            return None
        flat |= {path: jnp.zeros_like(flat[path], device=flat[path].sharding) for path in gates}
        unified = traverse_util.unflatten_dict(flat, sep="/")
        params = {**self.params, "unified": unified}
        return Generator(self.config, self.tokenizer, params, self.models.mesh)

    @property
    def encoder(self) -> PictureEncoder | None:
        """The encoder that measures pictures; None: the run has none."""
        return self.codec.encoder

    def features(self, images: Picture | Sequence[Picture]) -> Float32[np.ndarray, "B F"]:
        """Pooled features of the encoder.

        Raises:
          ValueError: the run has no encoder.
        """
        if self.encoder is None:
            raise ValueError(
                "this run has no encoder that could measure pictures; train one, or import one "
                "with unicom import --encoder"
            )
        return self.encoder.features(images)

    def prepared(self, image: Picture) -> Picture:
        """The picture as the model sees it: resized under the image policy."""
        return self.codec.prepared(image)
