"""What transformers requires of a model of pictures and words: `forward` and `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .modeling_unicom_reading import Grid, Placed, Reading
from .sequence_unicom import (
    Block,
    image_positions,
    pictures_are_causal,
    position_axes,
    position_count,
)


class Standard(Reading):
    """`forward` and `generate` of a causal language model, with pictures among the words.

    Pictures are given as `UnicomProcessor` prepares them: `pixel_values`, `image_grids`, and in
    `input_ids` one `<|image_pad|>` for each of their slots.
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_grids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """One pass over rows of words and pictures; gradients flow.

        Args:
          input_ids: (B, S), or inputs_embeds (B, S, W) in its place.
          attention_mask: (B, T) over the slots of the cache and the new ones, 0 where a slot is
            padding, on either side.
          position_ids: rotary positions, (B, S) of words or (coordinates, B, S); None: those of
            `rotary_positions`, for which pictures of earlier calls are unknown.
          past_key_values: keys and values of earlier calls; the new ones are added.
          labels: (B, S) the tokens themselves, and -100 where there is no loss, as at pictures;
            `loss` is the mean cross-entropy of each token, predicted from those before it.
          pixel_values, image_grids: the pictures in `input_ids`, see `UnicomProcessor`.
          logits_to_keep: compute logits of this many last slots only; 0: all.

        Raises:
          ValueError: inputs that do not fit together; attention weights are asked for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_attentions:
            raise ValueError("attention weights are not kept; leave output_attentions out")
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("attention_mask must be (B, slots); the model makes the full one")
        hidden = self.language_model.embed(input_ids) if inputs_embeds is None else inputs_embeds
        pictures = []
        if pixel_values is not None:
            pictures = list(self._placed(input_ids, pixel_values, image_grids))
            hidden = hidden.clone()
            self.place_pictures(hidden, pictures)
        keep = self.config.use_cache and not self.training if use_cache is None else use_cache
        cache = DynamicCache() if past_key_values is None and keep else past_key_values
        seen = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = self._positions(hidden, pictures, attention_mask, seen)
        if position_ids.ndim == 2:
            position_ids = position_ids.expand(self.axes, -1, -1)
        states = [] if output_hidden_states else None
        hidden = self.language_model(
            hidden,
            position_ids.movedim(0, -1).expand(*hidden.shape[:2], self.axes),
            self._mask(hidden, pictures, attention_mask, seen),
            cache,
            states=states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.language_model.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **options)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=cache,
            hidden_states=None if states is None else (*states, hidden),
        )
        return output.to_tuple() if return_dict is False else output

    # ---- places ---------------------------------------------------------------------------------

    def _placed(self, input_ids: Tensor, pixel_values: Tensor, grids: Tensor) -> Iterator[Placed]:
        """The pictures of all rows with their slots."""
        if input_ids is None or grids is None:
            raise ValueError("pixel_values need input_ids and image_grids beside them")
        for row, blocks in enumerate(self._blocks(input_ids, grids)):
            first = 0
            for grid, some in blocks:
                stop = first + grid[0] * grid[1]
                yield Placed(row, pixel_values[row, first:stop], grid, some)
                first = stop

    def _blocks(self, input_ids: Tensor, grids: Tensor) -> Iterator[list[tuple[Grid, list[Block]]]]:
        """Each row's pictures: their grid of patches and their blocks of slots."""
        form = self.format
        for row, (ids, row_grids) in enumerate(zip(input_ids, grids.tolist(), strict=True)):
            slots = (ids == self.config.image_token_id).nonzero()[:, 0].tolist()
            pictures = [tuple(grid) for grid in row_grids if grid[0]]
            if (needed := sum(map(form.slots, pictures))) != len(slots):
                raise ValueError(
                    f"row {row} has {len(slots)} slots for pictures, its {len(pictures)} pictures "
                    f"take {needed}; prepare both with the model's processor"
                )
            found, first = [], 0
            for number, grid in enumerate(pictures):
                blocks, start = [], slots[first]
                for role, size in form.grids(grid):
                    blocks.append(Block(number, role, start, size))
                    start += size[0] * size[1]
                first += form.slots(grid)
                found.append((grid, blocks))
            yield found

    def rotary_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None, image_grids: Tensor | None
    ) -> Tensor:
        """(coordinates, B, S) of each slot. Words count up; of pictures see `Format`."""
        blocks = []
        if image_grids is not None:
            for row, pictures in enumerate(self._blocks(input_ids, image_grids)):
                blocks += [(row, some) for _, some in pictures]
        return _count_up(input_ids, blocks, attention_mask, self.format.positions)

    def _positions(
        self, hidden: Tensor, pictures: list[Placed], attention_mask: Tensor | None, seen: int
    ) -> Tensor:
        blocks = [(picture.row, list(picture.blocks)) for picture in pictures]
        kind = self.format.positions
        if attention_mask is None:
            return _count_up(hidden[..., 0], blocks, None, kind) + seen
        before = attention_mask[:, :seen].sum(dim=1)
        new = attention_mask[:, seen : seen + hidden.shape[1]]
        positions = _count_up(hidden[..., 0], blocks, new, kind)
        return positions + before[None, :, None].to(hidden.device)

    def _mask(
        self, hidden: Tensor, pictures: list[Placed], attention_mask: Tensor | None, seen: int
    ) -> Tensor:
        """(B, S, seen + S) bool: words see what is before them, and a picture's slots all of it
        unless pictures are causal."""
        rows, slots = hidden.shape[:2]
        sees = (torch.arange(slots, device=hidden.device) + 1).repeat(rows, 1)
        for picture in () if pictures_are_causal(self.format.positions) else pictures:
            last = picture.blocks[-1]
            start, stop = picture.blocks[0].start, last.start + last.grid[0] * last.grid[1]
            sees[picture.row, start:stop] = stop
        keys = torch.arange(seen + slots, device=hidden.device)
        mask = keys < (sees + seen)[..., None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, : seen + slots].bool().to(hidden.device)
        return mask

    # ---- hooks of `generate` --------------------------------------------------------------------

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> Tensor:
        """Positions of the prompt; `generate` counts up from its last slot."""
        if inputs_tensor.ndim != 2 or inputs_tensor.is_floating_point():  # embeddings
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        mask, grids = model_kwargs.get("attention_mask"), model_kwargs.get("image_grids")
        return self.rotary_positions(inputs_tensor, mask, grids)

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None = None, **unused: Any) -> Any:
        """`forward` makes its own from the mask of padding, whatever the cache."""
        return attention_mask


def _count_up(
    slots: Tensor,
    pictures: list[tuple[int, list[Block]]],
    attention_mask: Tensor | None,
    kind: str,
) -> Tensor:
    """(coordinates, B, S) of rows like `slots` (B, S), of pictures of a kind: see `Format`."""
    rows, length = slots.shape
    step = torch.ones(rows, length, dtype=torch.long, device=slots.device)
    if attention_mask is not None:
        step = step * attention_mask.to(step)
    for row, blocks in pictures:
        stop = blocks[-1].start + blocks[-1].grid[0] * blocks[-1].grid[1]
        step[row, blocks[0].start : stop] = 0
        step[row, stop - 1] = max(position_count(*block.grid, kind) for block in blocks)
    start = step.cumsum(dim=1) - step
    positions = start.repeat(position_axes(kind), 1, 1)
    for row, blocks in pictures:
        first = start[row, blocks[0].start].clone()
        for block in blocks:
            places = torch.tensor(image_positions(0, *block.grid, kind), device=slots.device)
            stop = block.start + len(places)
            positions[:, row, block.start : stop] = places.T + first
    return positions
