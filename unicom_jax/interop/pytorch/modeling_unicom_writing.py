"""Writing words, token by token, after a prefix that was read once into a key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .modeling_unicom_language import interval_mask
from .modeling_unicom_reading import Context
from .modeling_unicom_standard import Standard
from .sequence_unicom import Segment


class Writing(Standard):
    """The part of a model that continues conversations in words."""

    @torch.no_grad()
    def write(
        self,
        conversations: Sequence[Sequence[Segment]],
        *,
        opening: str = "",
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        batch_size: int = 16,
    ) -> list[str]:
        """The words that follow each conversation, up to the end of the turn or a picture.

        temperature 0 takes the likeliest token; top_p keeps the smallest set of tokens with at
        least this much probability.
        """
        limit = self.defaults.max_new_tokens if max_tokens is None else max_tokens
        texts: list[str] = []
        for first in range(0, len(conversations), batch_size):
            some = conversations[first : first + batch_size]
            context = self.read([self.processor.prefix(c, opening) for c in some])
            choose = _chooser(temperature, top_p, generator)
            written = self.continue_tokens(context, limit, choose)
            texts += [self.processor.words_of(row) for row in written]
        return texts

    def continue_tokens(
        self, context: Context, max_tokens: int, choose: Callable[[Tensor], Tensor]
    ) -> list[list[int]]:
        """Token ids after each prefix, including the stop token."""
        hidden, rows = context.hidden, len(context.hidden)
        stops = torch.tensor(self.processor.stops, device=hidden.device)
        done = torch.zeros(rows, dtype=torch.bool, device=hidden.device)
        written: list[list[int]] = [[] for _ in range(rows)]
        for index in range(max_tokens):
            token = choose(self.language_model.logits(hidden)).to(done.device)
            ids, ended = token.tolist(), done.tolist()
            for row in range(rows):
                if not ended[row]:
                    written[row].append(ids[row])
            done |= torch.isin(token, stops)
            if done.all() or index + 1 == max_tokens:
                break
            hidden = self._feed(context, token, index)
        return written

    def _feed(self, context: Context, token: Tensor, index: int) -> Tensor:
        """Adds one token per row to the cache, at slot start + index; returns the hidden states
        (B, W)."""
        zeros = torch.zeros_like(context.lengths)
        start, stop = zeros + context.start, zeros + context.start + index + 1
        intervals = torch.stack([zeros, context.lengths, start, stop], dim=-1)[:, None]
        positions = (context.next_positions + index)[:, None, None].expand(-1, 1, self.axes)
        mask = interval_mask(intervals, context.start + index + 1)
        embedded = self.language_model.embed(token[:, None])
        return self.language_model(embedded, positions, mask, context.cache)[:, 0]


def _chooser(
    temperature: float, top_p: float, generator: torch.Generator | None
) -> Callable[[Tensor], Tensor]:
    """A function: logits (B, V) -> one token per row."""
    if temperature == 0.0:
        return lambda logits: logits.argmax(dim=-1)

    def choose(logits: Tensor) -> Tensor:
        share, order = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
        outside = share.cumsum(dim=-1) - share >= top_p
        outside[..., 0] = False  # the likeliest is always kept
        kept = share.masked_fill(outside, 0.0)
        drawn = torch.multinomial(kept, 1, generator=generator)
        return order.gather(-1, drawn)[:, 0]

    return choose
