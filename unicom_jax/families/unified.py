"""`UnifiedModel`: one transformer over rows of words and pictures.

It embeds words, places an `ImageModel`'s vectors of pictures into their slots, runs the
transformer, and gathers the hidden states of drawn pictures. From hidden states the vocabulary head
predicts text, and the image model pictures (papers: UniCom §3, Transfusion arXiv 2408.11039).
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from unicom_jax.core.activations import own_slots
from unicom_jax.core.batch import MaskIntervals, MixedBatch, Role
from unicom_jax.core.losses import LossTerms, text_terms
from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.core.parts import membership
from unicom_jax.core.scopes import in_module
from unicom_jax.core.transfer import Growth, Path, growth, rescaled
from unicom_jax.families.images import Context, ImageModel, Noised
from unicom_jax.families.slots import (
    draw_parts,
    dummy_draws,
    each_alone,
    pick,
    pick_contexts,
    pick_draws,
    pick_read,
    pictures_read,
    place_images,
    read_parts,
    side_by_side,
    take,
)
from unicom_jax.models.transformer import KVCache, Transformer


@flax.struct.dataclass
class DrawingContext:
    """What the velocity of one picture per row needs besides z_t; built once per picture.

    Attributes:
      grids: rows and columns of the picture's tokens.
      condition, aux: for an image model that does not read z_t in its slots; else None.
      cache, positions, mask, start: the prefix and the picture's slots, for one that does.
    """

    grids: Int[Array, "B 1 2"]
    condition: Any = None
    aux: Any = None
    cache: KVCache | None = None
    positions: Int[Array, "B s 2"] | None = None
    mask: MaskIntervals | None = None
    start: int | Int[Array, ""] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnifiedModel(Module):
    """A transformer and the image side of a family.

    Attributes:
      views: the most pictures read and draws, together, in a training row; 0: no limit. See
        `ImageModel.looked_at_and_drawn`.
      text_chunk, z_loss: see `core.losses.text_terms`.
      parts: number of parts of a mixture with losses of their own.
      tuned: the smaller model whose settings this one takes over; see `core.transfer`.
    """

    transformer: Transformer
    images: ImageModel
    views: int = 0
    text_chunk: int = 0
    z_loss: float = 0.0
    parts: int = 0
    compute_dtype: str = "float32"
    tuned: Module | None = None

    def specs(self) -> Specs:
        specs = self._own_specs()
        return rescaled(specs, self.grown()) if self.tuned else specs

    def _own_specs(self) -> Specs:
        return {"transformer": self.transformer.specs(), **self.images.specs()}

    def grown(self) -> dict[Path, Growth]:
        """How each weight grew from that of `tuned`."""
        return growth(self._own_specs(), self.tuned.specs())

    def frozen(self, *, draws: bool) -> tuple[str, ...]:
        """Patterns of weights that a stage does not train. `draws`: whether it has a flow loss."""
        return self.images.frozen(draws=draws)

    def loss_terms(
        self, params: Params, batch: MixedBatch, prepared: Any, row_keys: Key[Array, " B"]
    ) -> LossTerms:
        """Terms `text` (nats per token), `text_accuracy`, and those of the drawn pictures.

        With `parts`, `text/parts` and `flow/parts` have the sums and counts by part of the mixture.
        `prepared`: the result of `images.prepare` for the batch.
        """
        images, rows = self.images, batch.tokens.shape[0]
        over_all = images.flow_over == "all"
        noised = images.noise(prepared, batch.draws, row_keys)
        if self._tells_parts(batch):
            noised = noised.replace(of=self._members(draw_parts(batch)))
        if images.dummies:
            noised = noised.without_picture(dummy_draws(batch), scored=over_all)
        is_read = pictures_read(batch)
        if over_all:  # all pictures, whatever `views` allows: each is a prediction too
            ended = images.ended(prepared).replace(scored=is_read)
            if self._tells_parts(batch):
                ended = ended.replace(of=self._members(read_parts(batch)))
            ended = each_alone(ended)
            (read, of_read), (drawn, aux) = (
                images.drawn(params, alone) for alone in (ended, each_alone(noised))
            )
            looked, drawn = (side_by_side(read, rows),) * 2, side_by_side(drawn, rows)
        else:
            looked, drawn, aux = images.looked_at_and_drawn(
                params, prepared, noised, is_read, self.views
            )
        hidden = self._embed(params, batch, (*looked, drawn))
        places = self._places(batch)
        hidden, _ = self.transformer(params["transformer"], hidden, places, batch.mask)
        states = (
            Context(*pick_contexts(hidden, batch, drawn.shape[2]))
            if images.reads_context
            else pick_draws(hidden, batch, drawn.shape[2])
        )
        noised, states = each_alone((noised, states))
        terms = self._picture_terms(params, states, noised, aux)
        if over_all:
            states = each_alone(pick_read(hidden, batch, read.shape[2]))
            of_read = self._picture_terms(params, states, ended, of_read)
            both = {name: tuple(map(operator.add, terms[name], of_read[name])) for name in of_read}
            terms |= {name: pair for name, pair in both.items() if name.startswith("flow")}
        return {**terms, **self.text_terms(params, batch, hidden)}

    def _picture_terms(
        self, params: Params, states: Float[Array, "R 1 s W"] | Context, noised: Noised, aux: Any
    ) -> LossTerms:
        """Loss terms of pictures, each a row of its own, from the hidden states of their slots."""
        condition = self.images.condition(params, states, noised.grids)
        return self.images.loss_terms(params, condition, noised, aux)

    @in_module("logits")
    def text_terms(
        self, params: Params, batch: MixedBatch, hidden: Float[Array, "B S W"]
    ) -> LossTerms:
        """Terms `text` (nats per token), `text_accuracy` and, with `parts`, `text/parts`."""
        of = None
        if self._tells_parts(batch):
            of = membership(own_slots(batch.parts), self.parts)
        return text_terms(
            self.transformer.logits,
            self.transformer.head_weights(params["transformer"]),
            *map(own_slots, (hidden, batch.targets, batch.target_weights)),
            self.text_chunk,
            self.z_loss,
            self.transformer.head_weights(self.transformer.specs()),
            of,
        )

    def read(self, params: Params, batch: MixedBatch, prepared: Any) -> Float[Array, "B S W"]:
        """Hidden states of rows without draws; `prepared`: as for `prefill`."""
        looked_at = None if prepared is None else self.images.looked_at(params, prepared)
        hidden = self._embed(params, batch, looked_at)
        return self.transformer(params["transformer"], hidden, self._places(batch), batch.mask)[0]

    def _places(self, batch: MixedBatch) -> Int[Array, "B S axes"]:
        """The rotary positions of the transformer. With M-RoPE it has a third coordinate, time,
        which is that of its first row for a slot of a picture."""
        if self.transformer.rope_axes == 2:
            return batch.positions
        if not (most := batch.grids.shape[1]):
            return self.transformer.text_positions(batch.positions[..., 0])
        # Slots of a drawn picture, which count draws, may get any position: nobody sees them.
        columns = take(batch.grids, jnp.minimum(batch.image_index, most - 1))[..., 1]
        columns = columns // self.images.slot_patches
        row = batch.image_token // jnp.maximum(columns, 1)
        time = batch.positions[..., 0] - jnp.where(batch.roles > Role.TEXT, row, 0)
        return jnp.concatenate([time[..., None], batch.positions], axis=-1)

    def _members(self, numbers: Int[Array, "B n"]) -> Bool[Array, "B n 1 P"]:
        return membership(numbers, self.parts)[:, :, None]

    def _tells_parts(self, batch: MixedBatch) -> bool:
        return self.parts > 0 and batch.parts is not None

    def logits(self, params: Params, hidden: Float[Array, "*B W"]) -> Float32[Array, "*B V"]:
        """Next-token logits."""
        return self.transformer.logits(params["transformer"], hidden)

    # ---- sampling -------------------------------------------------------------------------

    def init_cache(self, rows: int, slots: int) -> KVCache:
        """An empty cache for `prefill` and `begin_drawing`."""
        states = self.images.reads_context
        return self.transformer.init_cache(rows, slots, self.compute_dtype, states=states)

    def prefill(
        self,
        params: Params,
        batch: MixedBatch,
        prepared: Any,
        cache: KVCache,
        start: int | Int[Array, ""] = 0,
    ) -> tuple[Float[Array, "B S W"], KVCache]:
        """Reads slots without draws into the cache at `start`: hidden states and cache.

        The mask of `batch` refers to cache slots. `prepared`: as for `loss_terms`; None if no row
        has a picture.
        """
        looked_at = None if prepared is None else self.images.looked_at(params, prepared)
        hidden = self._embed(params, batch, looked_at)
        return self.transformer(
            params["transformer"], hidden, self._places(batch), batch.mask, cache, start
        )

    def begin_drawing(
        self,
        params: Params,
        cache: KVCache,
        positions: Int[Array, "B s 2"],
        mask: MaskIntervals,
        grids: Int[Array, "B 2"],
        start: int | Int[Array, ""],
    ) -> DrawingContext:
        """Prepares for drawing one picture per row after a cached prefix.

        Args:
          positions, mask: positions and mask of the picture's slots; the mask counts cache slots.
          grids: rows and columns of the picture's tokens.
          start: the picture's first cache slot.
        """
        grids = grids[:, None]
        if self.images.reads_context:
            begin, stop = mask.context_start[:, :1], mask.context_stop[:, :1]
            states = pick(cache.states[0], begin, cache.states.shape[2] - positions.shape[1])
            found = Context(states, stop - begin)
            return DrawingContext(grids, self.images.condition(params, found, grids))
        context = DrawingContext(grids, cache=cache, positions=positions, mask=mask, start=start)
        if self.images.reads_noise:
            return context
        nothing = jnp.zeros((*grids.shape[:2], *self.images.shape_of(positions.shape[1])))
        noised = Noised(nothing, jnp.zeros(grids.shape[:2]), grids)
        return DrawingContext(grids, *self._condition(params, context, noised))

    def velocity(
        self,
        params: Params,
        context: DrawingContext,
        noisy: Float[Array, "B n d"],
        time: Float[Array, " B"],
    ) -> Float32[Array, "B n d"]:
        """dz/dt at z_t. The transformer runs only the picture's own slots, or none at all."""
        noised = Noised(noisy[:, None], time[:, None], context.grids)
        condition, aux = context.condition, context.aux
        if condition is None:
            condition, aux = self._condition(params, context, noised)
        return self.images.velocity(params, condition, noised, aux)[:, 0]

    def _condition(
        self, params: Params, context: DrawingContext, noised: Noised
    ) -> tuple[Any, Any]:
        drawn, aux = self.images.drawn(params, noised)
        hidden, _ = self.transformer(
            params["transformer"],
            drawn[:, 0].astype(self.compute_dtype),
            context.positions,
            context.mask,
            context.cache,
            context.start,
        )
        return self.images.condition(params, hidden[:, None], noised.grids), aux

    def _embed(
        self, params: Params, batch: MixedBatch, images: tuple[jax.Array, ...] | None
    ) -> Float[Array, "B S W"]:
        """The input vectors of all slots; `images`: as for `place_images`; None: text alone."""
        text = self.transformer.embed(params["transformer"], batch.tokens, self.compute_dtype)
        return text if images is None else place_images(text, batch, *images)
