"""One optimisation step for any stage: gradients, accumulation, update, EMA."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.sharding import Mesh

from unicom_jax.core.activations import ROWS, on_mesh, place
from unicom_jax.core.gradients import COMPUTE, weight_gradients
from unicom_jax.core.lora import base_weights
from unicom_jax.core.losses import LossTerms, mean, reported
from unicom_jax.core.module import Module, Params, complete_params, jit_once
from unicom_jax.parallel import sharding
from unicom_jax.parallel.memories import on_device, on_host
from unicom_jax.training.diagnostics import group_norms
from unicom_jax.training.groups import Groups
from unicom_jax.training.seeded import Seeded
from unicom_jax.training.spikes import no_norms, reject_spike
from unicom_jax.training.state import TrainState, applied_updates, check_freeze, merge, split

LossFunction = Callable[[Params, Params, Any, jax.Array], LossTerms]
PrepareFunction = Callable[[Params, Params, Any, jax.Array], Any]
PREPARE = zlib.crc32(b"prepare")  # folded into the key of `prepare`, to differ from the loss's


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is trained, and on which loss.

    Attributes:
      name: directory and metric prefix.
      module: owns the trained weights.
      loss: (params, frozen parts, batch, row_keys (B,)) -> terms.
      weights: factor of each term in the total loss; terms without one are only reported.
      freeze: regular expressions for those of the module's weights that are frozen.
      starts: number of updates after which a term counts; terms without one count at once.
      rows_are_independent: False if rows see each other (a contrastive loss), so that a batch
        cannot be split into accumulation steps.
      finish: (params, frozen) -> params, run once after the last step. It may change weights that
        `freeze` matches (the latent statistics) but no trained ones.
      predicted: gives the share of a batch's slots that predict a token and so need logits.
      visible: gives the share of the pairs of a row's slots that the batch's mask shows.
      facts: gives what `stage.json` says about the finished weights, besides their number.
      prepare: (params, frozen parts, batch, key) -> the batch for the loss, such as rollouts of the
        current weights with their rewards. It is compiled separately, on the mesh; no gradient
        passes through it. Every leaf of the result has rows first, and their number divides over
        the mesh as `batch_size` does.
      inner_steps: updates on each prepared batch, each with new noise. `steps` in the settings
        counts batches.
      rollouts: gives what `prepare` samples from a batch, for people to look at.
      old: share of itself that a running average of the trained weights keeps after a batch, by the
        number of updates. `prepare` gets this average; None: it gets the weights themselves.
    """

    name: str
    module: Module
    loss: LossFunction
    weights: Mapping[str, float]
    freeze: Sequence[str] = ()
    starts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rows_are_independent: bool = True
    finish: Callable[[Params, Params], Params] | None = None
    predicted: Callable[[Any], jax.Array | float] = lambda batch: 1.0
    visible: Callable[[Any], jax.Array | float] = lambda batch: 1.0
    facts: Callable[[Params], Mapping[str, Any]] = lambda params: {}
    prepare: PrepareFunction | None = None
    inner_steps: int = 1
    rollouts: PrepareFunction | None = None
    old: Callable[[jax.Array], jax.Array] | None = None

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise ValueError(f"stage {self.name!r}: inner_steps={self.inner_steps}; give 1 or more")

    def weights_at(self, step: jax.Array) -> dict[str, float | jax.Array]:
        """`weights` for the update after `step` earlier ones."""
        starts = {name: first for name, first in self.starts.items() if first}
        begun = {name: jnp.where(step < first, 0.0, 1.0) for name, first in starts.items()}
        return {name: w * begun[name] if name in begun else w for name, w in self.weights.items()}


def weighted_total(
    terms: LossTerms,
    weights: Mapping[str, float | jax.Array],
    counts: Mapping[str, jax.Array],
) -> jax.Array:
    return sum(weights[k] * mean((terms[k][0], counts[k])) for k in weights)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
    """One random key per row, (rows,)."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def in_parts(rows: Any, parts: int) -> Any:
    """Arrays (B, ...) as (parts, B / parts, ...): part p has the rows p, p + parts, ...

    So each device has its rows of every part among its own rows of the batch.
    """

    def split_rows(x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
        return place(jnp.swapaxes(x, 0, 1), (), ROWS)

    return jax.tree.map(split_rows, rows)


def make_gradients(
    stage: Stage, accumulate: int, mesh: Mesh, gradient_dtype: str = COMPUTE
) -> Callable:
    """(trained, held, frozen, batch, keys, step) -> (total loss, terms, gradients of `trained`).

    Gradients are sharded like their weights, so a device holds no more of a sum than of a weight.

    With accumulation the batch is computed `in_parts`. The counts of the whole batch are summed
    first (they do not depend on the weights, so XLA drops the forward pass of that scan); each part
    then contributes exactly what it would in one big batch.
    """

    def total(trained, held, frozen, batch, keys, weights, counts):
        terms = stage.loss(merge(trained, held), frozen, batch, keys)
        counts = {k: c for k, (_, c) in terms.items()} if counts is None else counts
        return weighted_total(terms, weights, counts), terms

    places, _ = split(sharding.param_shardings(stage.module.specs(), mesh), stage.freeze)
    differentiate = jax.value_and_grad(total, has_aux=True)

    def gradient(*arguments):
        (loss, terms), grads = differentiate(*arguments)
        return loss, terms, jax.lax.with_sharding_constraint(grads, places)

    def whole(trained, held, frozen, batch, keys, step):
        return gradient(trained, held, frozen, batch, keys, stage.weights_at(step), None)

    def accumulated(trained, held, frozen, batch, keys, step):
        weights = stage.weights_at(step)
        parts = in_parts((batch, keys), accumulate)

        def count(part):
            terms = stage.loss(merge(trained, held), frozen, *part)
            return {k: c for k, (_, c) in terms.items()}

        counts = jax.tree.map(lambda c: c.sum(0), jax.lax.map(count, parts))

        def add(carry, part):
            return jax.tree.map(
                jnp.add, carry, gradient(trained, held, frozen, *part, weights, counts)
            ), None

        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, trained, held, frozen, *first, weights, counts)
        loss, terms, grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        grads = jax.lax.with_sharding_constraint(grads, places)
        return jax.lax.scan(add, (loss, terms, grads), parts)[0]

    def placed(*arguments):
        with on_mesh(mesh), weight_gradients(gradient_dtype):
            return (whole if accumulate == 1 else accumulated)(*arguments)

    return placed


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The compiled pieces of a stage's training on a mesh.

    Attributes:
      schedule: learning rate as a function of the number of applied updates: a skipped step changes
        neither the optimiser's count nor the rate.
      ema_decay: decay of the running average of the trained weights; 0: no average.
      ema_warmup: whether the average follows faster at first: after n updates the decay is
        min(ema_decay, (1 + n) / (10 + n)), so that it soon forgets where training started.
      offload_optimizer: whether moments are kept in host memory between updates.
      spike_factor: steps with a gradient norm above this many medians are skipped; 0: none.
      gradient_dtype: dtype of weight gradients until they are summed (`core.gradients`).
      groups: the groups with which the optimiser was made, for names in the metrics.
      diagnostics: whether the metrics include norms of each group's gradients, weights and updates.
      noise_fold: a number of the stage's own, folded into the key of its noise; None: stages with
        the same seed draw the same noise at the same step.
    """

    stage: Stage
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    mesh: Mesh
    seed: int
    accumulate: int = 1
    ema_decay: float = 0.0
    ema_warmup: bool = False
    offload_optimizer: bool = False
    spike_factor: float = 0.0
    gradient_dtype: str = COMPUTE
    groups: Groups = Groups()
    diagnostics: bool = False
    noise_fold: int | None = None

    def __post_init__(self) -> None:
        check_freeze(self.stage.module.specs(), self.stage.freeze)
        if self.accumulate > 1 and not self.stage.rows_are_independent:
            raise ValueError(
                f"stage {self.stage.name!r} compares all rows of a batch with each other, so a "
                "batch cannot be split; set accumulate=1, and use more devices or a smaller "
                "batch_size"
            )

    def init_state(self, params: Params | None = None) -> TrainState:
        """A new, sharded state; `params` replaces random initialisation and is donated.

        Adapters that `params` lack (`core.lora`) are initialised.

        Raises:
          ValueError: `params` lack another weight.
        """

        def fresh(key: jax.Array) -> TrainState:
            return self._state_of(self.stage.module.init(key))

        key = jax.random.key(self.seed)
        if params is None:
            return jit_once(fresh, out_shardings=self.shardings())(key)
        specs = self.stage.module.specs()
        needed, given = (traverse_util.flatten_dict(x) for x in (base_weights(specs), params))
        if missing := sorted("/".join(path) for path in needed.keys() - given.keys()):
            raise ValueError(
                f"{self.stage.name} was given no {missing[0]} to start from ({len(missing)} of "
                f"{len(needed)} weights are missing); give all weights, or none"
            )
        params = complete_params(
            specs, params, key, lambda some: sharding.param_shardings(some, self.mesh)
        )
        # Donated to avoid a second copy of the weights.
        return jax.jit(self._state_of, out_shardings=self.shardings(), donate_argnums=0)(params)

    def _state_of(self, params: Params) -> TrainState:
        trained, _ = split(params, self.stage.freeze)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.init(trained),
            ema=jax.tree.map(jnp.copy, trained) if self.ema_decay else None,
            norms=no_norms() if self.spike_factor else None,
            old=jax.tree.map(jnp.copy, trained) if self.stage.old else None,
        )

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, for restoring without building one."""
        shapes = jax.eval_shape(self._state_of, self.stage.module.abstract())
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            shapes,
            self.shardings(),
        )

    def shardings(self) -> TrainState:
        params = sharding.param_shardings(self.stage.module.specs(), self.mesh)
        trained, _ = split(params, self.stage.freeze)
        shapes = jax.eval_shape(self._state_of, self.stage.module.abstract()).opt_state
        moments = sharding.optimizer_shardings(shapes, trained, self.mesh)
        everywhere = sharding.replicated(self.mesh)
        return TrainState(
            step=everywhere,
            params=params,
            opt_state=on_host(moments, shapes) if self.offload_optimizer else moments,
            ema=trained if self.ema_decay else None,
            norms=everywhere if self.spike_factor else None,
            old=trained if self.stage.old else None,
        )

    def _seeded(self, function: Callable[..., Any], **how: Any) -> Seeded:
        """Compiles (key of the stage's noise, *arguments) -> result."""
        key = jax.random.key(self.seed)
        if self.noise_fold is not None:
            key = jax.random.fold_in(key, self.noise_fold)

        def with_data(data: jax.Array, *args: Any) -> Any:
            return function(jax.random.wrap_key_data(data), *args)

        jitted = jax.jit(functools.wraps(function)(with_data), **how)
        return Seeded(jitted, np.asarray(jax.random.key_data(key)))

    def prepare_step(self) -> Callable[[TrainState, Params, Any], Any]:
        """The jitted `Stage.prepare`: (state, frozen, batch) -> batch.

        It depends on the seed, the step and the weights; nothing is donated. Without `prepare` the
        batch is returned unchanged.
        """
        if (prepare := self.stage.prepare) is None:
            return lambda state, frozen, batch: batch

        def step(key: jax.Array, state: TrainState, frozen: Params, batch: Any) -> Any:
            key = jax.random.fold_in(jax.random.fold_in(key, state.step), PREPARE)
            params = merge(state.params, state.old) if self.stage.old else state.params
            with on_mesh(self.mesh):
                return prepare(params, frozen, batch, key)

        return self._seeded(step, out_shardings=sharding.batch_sharding(self.mesh))

    def train_step(self) -> Seeded:
        """The jitted step (state, frozen, batch) -> (state, metrics); the state is donated."""
        gradients = make_gradients(self.stage, self.accumulate, self.mesh, self.gradient_dtype)
        update = optax.with_extra_args_support(self.optimizer).update

        def step(
            key: jax.Array, state: TrainState, frozen: Params, batch: Any
        ) -> tuple[TrainState, dict]:
            rows = jax.tree.leaves(batch)[0].shape[0]
            keys = row_keys(jax.random.fold_in(key, state.step), rows)
            trained, held = split(state.params, self.stage.freeze)
            loss, terms, grads = gradients(trained, held, frozen, batch, keys, state.step)
            norm, norms, watched = optax.tree.norm(grads), state.norms, {}
            own = grads  # before a spike turns them into NaN
            if self.spike_factor:
                grads, ratio, norms = reject_spike(
                    grads, norm, norms, state.step, self.spike_factor
                )
                watched["gradient_norm_ratio"] = ratio
            opt_state = on_device(state.opt_state) if self.offload_optimizer else state.opt_state
            updates, opt_state = update(grads, opt_state, trained, mesh=self.mesh)
            trained = optax.apply_updates(trained, updates)
            if self.diagnostics:
                kinds = {"gradient_norm": own, "parameter_norm": trained, "update_norm": updates}
                watched |= group_norms(kinds, self.groups.label)
            done = applied_updates(state)
            ema = self._average(state.ema, trained, done, opt_state.last_finite)
            metrics = {
                "loss": loss,
                **{f"loss/{name}": value for name, value in reported(terms).items()},
                **{f"count/{name}": count for name, (_, count) in terms.items() if "/" in name},
                "gradient_norm": norm,
                **watched,
                **self._rates(done),
                "skipped_steps": opt_state.total_notfinite,
                "skipped_in_a_row": opt_state.notfinite_count,
            }
            params, old = merge(trained, held), self._follow(state.old, trained, state.step + 1)
            return TrainState(state.step + 1, params, opt_state, ema, norms, old), metrics

        everywhere = sharding.replicated(self.mesh)
        return self._seeded(step, donate_argnums=1, out_shardings=(self.shardings(), everywhere))

    def _rates(self, done: jax.Array) -> dict[str, jax.Array]:
        """The learning rate of the update after `done` earlier ones, and that of each group."""
        rate = self.schedule(done)
        own = {f"learning_rate/{name}": f * rate for name, f in self.groups.rates().items()}
        return {"learning_rate": rate, **own}

    def _average(self, ema: Any, trained: Any, done: jax.Array, taken: jax.Array) -> Any:
        """The average after an update that follows `done` earlier ones; a skipped step, which is
        not `taken`, does not change it."""
        if not self.ema_decay:
            return ema
        share = 1.0 - self.ema_decay
        if self.ema_warmup:
            share = jnp.maximum(share, 9.0 / (10.0 + done))  # 1 - (1 + n) / (10 + n)
        return optax.incremental_update(trained, ema, jnp.where(taken, share, 0.0))

    def _follow(self, old: Any, trained: Any, updates: jax.Array) -> Any:
        """`TrainState.old` after `updates` updates; only the last one on a batch changes it."""
        if self.stage.old is None:
            return old
        share = 1.0 - self.stage.old(updates)
        last = updates % self.stage.inner_steps == 0
        return optax.incremental_update(trained, old, jnp.where(last, share, 0.0))

    def next_rate(self, state: TrainState) -> float:
        """The learning rate of the next update."""
        return float(self.schedule(int(applied_updates(state))))

    def eval_step(self) -> Callable[[Params, Params, Any], LossTerms]:
        """The jitted loss terms of a batch, with noise that does not depend on the step.

        With accumulation one part is computed at a time, as in training, so that evaluation needs
        no more memory than a step.
        """

        def step(params: Params, frozen: Params, batch: Any) -> LossTerms:
            rows = jax.tree.leaves(batch)[0].shape[0]
            keys = row_keys(jax.random.key(0), rows)
            with on_mesh(self.mesh):
                if self.accumulate == 1:
                    return self.stage.loss(params, frozen, batch, keys)
                parts = in_parts((batch, keys), self.accumulate)
                terms = jax.lax.map(lambda part: self.stage.loss(params, frozen, *part), parts)
                return jax.tree.map(lambda x: x.sum(0), terms)

        return jax.jit(step, out_shardings=sharding.replicated(self.mesh))

    def weights_for_use(self, state: TrainState) -> Params:
        """The averaged weights if there are any, else the raw ones."""
        return merge(state.params, state.ema) if self.ema_decay else state.params
