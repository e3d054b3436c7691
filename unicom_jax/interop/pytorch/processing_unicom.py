"""The processor of a UniCom model: from words and pictures to the model's inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from .image_processing_unicom import Picture, UnicomImageProcessor, pad_patches
from .sequence_unicom import (
    IMAGE_PAD,
    NO_MEAN,
    STOPS,
    STRUCTURE,
    THINK,
    VISION_END,
    VISION_START,
    Format,
    Image,
    Prefix,
    Segment,
    Words,
    unconditional,
)

__all__ = ["Image", "UnicomProcessor", "Words"]


class UnicomProcessor(ProcessorMixin):
    """A tokenizer, an image processor and the sequence format of a model's configuration.

    Args:
      image_processor: a `UnicomImageProcessor`. tokenizer: any of transformers' fast ones.
      sequence: as in the model's config.json, see `Format`.
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        image_processor: UnicomImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        sequence: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        if not sequence:
            raise ValueError(
                "the processor needs the section `sequence` of the model's config.json; load it "
                "with AutoProcessor.from_pretrained from an exported folder"
            )
        self.sequence = dict(sequence)
        self.image_token = IMAGE_PAD
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_PAD)
        marks = [*STRUCTURE, *([NO_MEAN] if NO_MEAN in tokenizer.get_vocab() else [])]
        self.structure = frozenset(tokenizer.convert_tokens_to_ids(marks))
        self.stops = tokenizer.convert_tokens_to_ids(list(STOPS))

    @property
    def format(self) -> Format:
        return Format(**self.sequence)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_grids"]

    # ---- required by transformers ---------------------------------------------------------------

    def __call__(
        self,
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """Inputs of `UnicomModel.forward` and `generate`.

        Args:
          images: pictures in the order of their marks `<|image_pad|>` in `text`, in one list or in
            one list per text. If no text has a mark, each becomes a user's turn that begins with
            its pictures.
          text: one text or several, as `apply_chat_template` writes them.
          options: of the tokenizer: padding, truncation, ... By default padding is on the left, as
            `generate` needs it.

        Returns:
          `input_ids` and `attention_mask` (B, S), and with pictures `pixel_values` (B, N, P * P *
          3), the patches of all pictures of a row in -1..1, and `image_grids` (B, pictures, 2),
          their rows and columns of patches; both are filled up with zeros.
        """
        if text is None:
            raise ValueError("give text too; a picture alone can be described with model.caption")
        options |= {**options.pop("text_kwargs", {}), **options.pop("images_kwargs", {})}
        for unused in ("videos", "audio", "videos_kwargs", "audio_kwargs", "common_kwargs"):
            if options.pop(unused, None):
                raise ValueError(f"this model takes pictures and words, no {unused}")
        texts = [text] if isinstance(text, str) else list(text)
        rows = self._rows(images, texts)
        if any(rows) and not any(IMAGE_PAD in one for one in texts):
            texts = [self._turn(one, len(row)) for one, row in zip(texts, rows, strict=True)]
        seen = [[self.image_processor.prepare(picture) for picture in row] for row in rows]
        texts = [self._widened(one, row) for one, row in zip(texts, seen, strict=True)]
        options = {"padding_side": "left", "return_token_type_ids": False} | options
        data = dict(self.tokenizer(texts, return_tensors=return_tensors, **options))
        if any(rows):
            data |= self._pixels(seen)
        return BatchFeature(data, tensor_type=return_tensors)

    def _rows(self, images: Any, texts: list[str]) -> list[list[Picture]]:
        """The pictures of each text."""
        if images is None:
            images = []
        if not isinstance(images, list | tuple):
            images = [images]
        if images and isinstance(images[0], list | tuple):
            if len(images) != len(texts):
                raise ValueError(f"{len(images)} lists of images for {len(texts)} texts")
            return [list(row) for row in images]
        counts = [one.count(IMAGE_PAD) for one in texts]
        if images and not any(counts):  # as many for each text
            counts = [len(images) // len(texts)] * len(texts)
        if sum(counts) != len(images):
            raise ValueError(
                f"the texts have {sum(counts)} marks {IMAGE_PAD} for {len(images)} images; give "
                "one mark an image"
            )
        stops = np.cumsum(counts)
        return [
            list(images[stop - count : stop]) for stop, count in zip(stops, counts, strict=True)
        ]

    def _turn(self, text: str, pictures: int) -> str:
        """A user's turn about that many pictures, up to where the answer begins."""
        marks = (VISION_START + IMAGE_PAD + VISION_END) * pictures
        return f"{self.format.prompt_open}{marks}{text}{self.format.prompt_close}"

    def _widened(self, text: str, pictures: Sequence[np.ndarray]) -> str:
        """`text` with as many marks for each picture as it takes slots."""
        if text.count(IMAGE_PAD) != len(pictures):
            raise ValueError(
                f"the text {text[:60]!r} has {text.count(IMAGE_PAD)} marks {IMAGE_PAD} for "
                f"{len(pictures)} images; give one mark an image"
            )
        left = iter(pictures)

        def marks(_: re.Match) -> str:
            return IMAGE_PAD * self.format.slots(self.image_processor.grid(next(left)))

        return re.sub(re.escape(IMAGE_PAD), marks, text)

    def _pixels(self, rows: Sequence[Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
        """`pixel_values` and `image_grids` of prepared pictures."""
        grids = np.zeros((len(rows), max(map(len, rows)), 2), np.int64)
        joined = []
        for number, row in enumerate(rows):
            joined.append(self.image_processor.pixel_values(row))
            for place, picture in enumerate(row):
                grids[number, place] = self.image_processor.grid(picture)
        return {"pixel_values": pad_patches(joined), "image_grids": grids}

    # ---- conversations of the model's own methods -----------------------------------------------

    def prefix(self, segments: Sequence[Segment], opening: str = "") -> Prefix:
        """The sequence of a conversation so far.

        Args:
          segments: when they end with the user's, the turn is closed and the response starts.
          opening: what the response is made to start with: VISION_START draws at once.

        Raises:
          ValueError: words with tokens that mark turns or pictures.
        """
        form, previous = self.format, None
        prefix = Prefix(form.positions)
        for segment in form.in_order(segments):
            if not segment.response and previous is not False:  # a prompt opens a turn
                if previous:
                    prefix.add_words(self.ids_of(form.response_close))
                prefix.add_words(self.ids_of(form.prompt_open))
            if segment.response and previous is False:
                prefix.add_words(self.ids_of(form.prompt_close))
            if isinstance(segment, Words):
                prefix.add_words(self._user_words(segment.text))
            else:
                prefix.add_words(self.ids_of(VISION_START))
                pixels = self.image_processor.prepare(segment.pixels)
                grid = self.image_processor.grid(pixels)
                prefix.add_image(pixels, form.grids(grid, segment.use))
                prefix.add_words(self.ids_of(VISION_END))
            previous = segment.response
        if previous is False:
            prefix.add_words(self.ids_of(form.prompt_close))
        prefix.add_words(self.ids_of(opening))
        return prefix

    def wordless(self, segments: Sequence[Segment], opening: str = "") -> Prefix:
        """As `prefix`, but without words, as training left them out: for guidance."""
        if self.format.unconditional == "empty":
            return self.prefix(unconditional(segments), opening)
        prefix = self.prefix(segments, opening)
        marks = self.tokenizer.convert_tokens_to_ids([VISION_START, VISION_END])
        pictures = {
            slot
            for block in prefix.blocks
            for slot in range(block.start, block.start + block.grid[0] * block.grid[1])
        }
        no_mean = self.tokenizer.convert_tokens_to_ids(NO_MEAN)
        prefix.tokens = [
            token if slot in pictures or token in marks else no_mean
            for slot, token in enumerate(prefix.tokens)
        ]
        return prefix

    def ids_of(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def words_of(self, tokens: Sequence[int]) -> str:
        """The words of tokens. Of the special tokens, only those around a thought are spelt."""
        think = {self.tokenizer.convert_tokens_to_ids(spelling): spelling for spelling in THINK}
        pieces, run = [], []
        for token in tokens:
            if token in think:
                pieces += [self._spell(run), think[token]]
                run = []
            else:
                run.append(token)
        return "".join([*pieces, self._spell(run)]).strip()

    def _spell(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _user_words(self, text: str) -> list[int]:
        ids = self.ids_of(text)
        if not self.structure.isdisjoint(ids):
            raise ValueError(
                f"the text {text[:60]!r} contains tokens that mark turns or images; remove their "
                "spellings from it"
            )
        return ids
