"""Operations of a step: against hand counts, PaLM's formula and XLA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.build import sequence_config
from experiments.benchmarks import ours
from experiments.benchmarks.standard import Standard
from tests.families.documents import ALL, documents, pack
from tests.tiny import tiny_config
from tests.training.test_stages import pictures
from unicom_jax.core.attention import attention, interval_mask, padding_mask, visible_share
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.layers import Linear
from unicom_jax.core.module import Module
from unicom_jax.families.build import build_codec, build_encoder
from unicom_jax.models.transformer import Transformer
from unicom_jax.parallel.accelerators import ACCELERATORS
from unicom_jax.parallel.plan.arithmetic import slowdown, traced_arithmetic
from unicom_jax.training.flops import computed, step_flops
from unicom_jax.training.stages.codec import codec_stage
from unicom_jax.training.stages.encoder import encoder_stage
from unicom_jax.training.stages.unified import unified_stage
from unicom_jax.training.step import Stage

B, S, D = 3, 8, 16  # rows, slots, width
LAYER = 2 * B * D * D  # one D x D product for B rows


class Chain(Module):
    """a, b, c: three D x D layers without activation."""

    def specs(self):
        return {name: Linear(D, D, bias=False).specs() for name in "abc"}


def chain_stage(freeze=(), reported=False):
    def loss(params, frozen, batch, keys):
        x = batch @ frozen["before"] if frozen else batch
        for name in "abc":
            x = x @ params[name]["kernel"]
        terms = {"main": (jnp.sum(x), 1.0)}
        return {**terms, "shown": (jnp.sum(x @ x.T), 1.0)} if reported else terms

    return Stage("chain", Chain(), loss, {"main": 1.0}, freeze)


def count(stage, frozen=None):
    return step_flops(stage, frozen or {}, jnp.zeros((B, D)))


def test_a_product_counts_forward_and_once_for_each_factor_with_a_gradient():
    assert count(chain_stage()) == (2 + 3 + 3) * LAYER  # the first layer's input is data


@pytest.mark.parametrize(
    ("freeze", "products"), [(("a",), 1 + 2 + 3), (("b",), 2 + 2 + 3), (("a", "b"), 1 + 1 + 2)]
)
def test_a_frozen_layer_has_no_gradient_and_passes_one_on_only_to_trained_ones(freeze, products):
    assert count(chain_stage(freeze)) == products * LAYER


def test_what_comes_before_all_trained_weights_counts_forward_only():
    before = {"before": jnp.zeros((D, D))}
    assert count(chain_stage(), before) == count(chain_stage()) + LAYER


def test_terms_that_are_only_reported_do_not_count():
    assert count(chain_stage(reported=True)) == count(chain_stage())


def test_a_scan_counts_its_body_for_each_layer_though_carries_and_inputs_have_equal_ranks():
    """Constants, carries and inputs of a scan are told apart by their ranks in its body."""

    def loss(params, frozen, batch, keys):
        scale, mixed = jnp.arange(1.0, 4.0), jnp.eye(D)

        def layer(carry, given):
            x, total = carry  # a matrix and a number, as the inputs of the body are
            kernel, factor = given
            x = x @ mixed @ kernel
            return (x, total + factor), factor * jnp.sum(x)

        kernels = jnp.stack([params[name]["kernel"] for name in "abc"])
        (x, total), sums = jax.lax.scan(layer, (batch, 0.0), (kernels, scale))
        return {"main": (jnp.sum(x) + total + jnp.sum(sums), 1.0)}

    # A layer: forward twice; gradients of its kernel, and of both of its inputs.
    assert count(Stage("scanned", Chain(), loss, {"main": 1.0})) == 3 * (2 + 1 + 2) * LAYER


def test_xla_counts_as_many_where_no_layer_is_scanned():
    stage = chain_stage()

    def total(params, batch):
        return stage.loss(params, {}, batch, None)["main"][0]

    gradient = jax.jit(jax.grad(total)).lower(stage.module.abstract(), jnp.zeros((B, D)))
    # The sum of the outputs is no product, and its gradient needs no forward pass of layer c.
    assert gradient.compile().cost_analysis()["flops"] == pytest.approx(
        count(stage) - LAYER, rel=0.02
    )


def language_stage(**options):
    model = Transformer(vocab_size=40, width=D, depth=3, heads=2, kv_heads=1, head_dim=8,
                        mlp_dim=24, tied_head=False, **options)  # fmt: skip

    def loss(params, frozen, batch, keys):
        mask = padding_mask(jnp.full(B, S), S)
        hidden, _ = model(params, model.embed(params, batch), jnp.zeros((B, S, 2), jnp.int32), mask)
        return {"text": (jnp.sum(model.logits(params, hidden) ** 2), 1.0)}

    return Stage("language", model, loss, {"text": 1.0})


WAYS = pytest.mark.parametrize(
    "options",
    [{}, {"remat": "full"}, {"attention_backend": "chunked", "attention_block": 4}],
    ids=lambda options: " ".join(map(str, options.values())) or "plain",
)


@WAYS
def test_a_language_model_takes_palms_count_however_it_is_computed(options):
    stage = language_stage(**options)
    kernels = 3 * (2 * D * 16 + 2 * D * 8 + 3 * D * 24) + D * 40  # no embedding, norms or biases
    palm = 6 * B * S * kernels + 12 * 3 * B * S * S * 2 * 8  # 6 N T + 12 L H Q T² a row
    assert step_flops(stage, {}, jnp.zeros((B, S), jnp.int32)) == palm


@WAYS
def test_attention_counts_the_pairs_that_the_mask_shows(options):
    stage, tokens = language_stage(**options), jnp.zeros((B, S), jnp.int32)
    pairs = 3 * 2 * 2 * 3 * 2 * 8  # forward and backward, two products, layers, heads, channels
    for seen in (0, 1, S * S // 4):  # pairs of a row
        hidden = step_flops(stage, {}, tokens) - step_flops(stage, {}, tokens, 1.0, seen / S**2)
        assert hidden == B * (S * S - seen) * pairs


def test_a_packed_batch_reports_the_share_of_pairs_that_its_mask_shows():
    sequence = sequence_config(tiny_config())
    batch = pack(documents(ALL, sequence), [[0, 1, 2], [3], [4]], sequence)
    drawn = np.asarray(interval_mask(batch.mask, batch.tokens.shape[1]))
    assert 0.05 < drawn.mean() < 0.5
    stage = unified_stage("pretrain", tiny_config())
    assert float(jax.jit(stage.visible)(batch)) == pytest.approx(drawn.mean(), rel=1e-6)


def test_intervals_that_overlap_or_leave_the_row_show_a_pair_once():
    mask = MaskIntervals(*(np.array([[x, 0]], np.int32) for x in (-3, 4, 2, 9)))
    drawn, share = jax.jit(lambda mask: (interval_mask(mask, 6), visible_share(mask, 6)))(mask)
    assert float(share) == np.asarray(drawn).mean() == 0.5


def test_only_attention_within_packed_rows_depends_on_the_mask():
    config = tiny_config()
    frozen = {
        "encoder": build_encoder(config).vision.abstract(),
        "codec": build_codec(config).abstract(),
    }
    sequence = sequence_config(config)
    batch = pack(documents(ALL, sequence), [[0, 1, 2, 3, 4]], sequence)
    stage, reader = unified_stage("pretrain", config), config.unified.transformer
    whole, none = (step_flops(stage, frozen, batch, 1.0, share) for share in (1.0, 0.0))
    heads = reader.depth * reader.heads * reader.head_dim
    assert whole - none == 12 * heads * batch.tokens.shape[1] ** 2


@pytest.mark.parametrize("backend", ["dense", "chunked", "fused"])
def test_attention_counts_the_same_in_blocks_and_in_a_kernel(backend):
    slots = 256  # enough for a kernel, and whole blocks: what fills them up counts too

    def loss(params, frozen, batch, keys):
        q = (batch @ params["a"]["kernel"]).reshape(B, slots, 2, D // 2)
        return {"main": (jnp.sum(attention(q, q, q, backend=backend)), 1.0)}

    stage = Stage("attention", Chain(), loss, {"main": 1.0})
    products = 2 * 2 * B * slots * D * D + 3 * 2 * 2 * B * slots**2 * D
    assert step_flops(stage, {}, jnp.zeros((B, slots, D))) == products


def test_kernels_count_what_they_say_of_themselves_where_they_are_asked_for():
    slots, head = 256, D // 2

    def loss(params, frozen, batch, keys):
        q = (batch @ params["a"]["kernel"]).reshape(B, slots, 2, head)
        return {"main": (jnp.sum(attention(q, q, q, backend="fused")), 1.0)}

    stage, batch = Stage("attention", Chain(), loss, {"main": 1.0}), jnp.zeros((B, slots, D))
    plain, kernels = computed(stage, {}, batch), computed(stage, {}, batch, kernels=True)
    layer, pairs = 2 * 2 * B * slots * D * D, 2 * B * slots**2
    assert plain[0] == layer + (2 + 5) * 2 * pairs * head  # scores again for the gradient
    assert kernels[0] == layer + (2 + 3 + 4) * 2 * pairs * head  # and for each kernel of it
    assert kernels[1] < 4 * pairs < plain[1]  # fp32 scores never pass through main memory


def test_dots_compute_no_attention_in_blocks_again():
    batch = jnp.zeros((B, S), jnp.int32)
    stage = language_stage(remat="dots", attention_backend="chunked")
    scores = 3 * 2 * B * S * S * 2 * 8  # of three layers, once more for their gradient
    assert computed(stage, {}, batch)[0] == step_flops(stage, {}, batch) + scores


def test_logits_count_at_the_slots_that_predict_a_token():
    sizes = Standard(width=D, depth=1, heads=2, kv_heads=1, mlp_dim=24, vocab_size=40, rows=B,
                     text_tokens=128, grid=8, latent_dim=8)  # fmt: skip
    stage, batch = ours.make_stage(sizes), ours.make_batch(sizes)
    frozen = ours.images(sizes)
    logits = 6 * sizes.rows * sizes.slots * D * sizes.vocab_size
    whole, half = (step_flops(stage, frozen, batch, share) for share in (1.0, 0.5))
    assert whole - half == logits / 2
    assert step_flops(stage, frozen, batch) == whole


def test_the_unified_stage_reports_how_many_slots_predict_a_token():
    stage = unified_stage("pretrain", tiny_config())
    batch = ours.make_batch(Standard(text_tokens=129, grid=8))
    assert float(jax.jit(stage.predicted)(batch)) == pytest.approx(128 / 193)


def test_what_the_backward_pass_computes_again_is_computed_but_not_needed():
    batch = jnp.zeros((B, S), jnp.int32)
    plain, remat = (language_stage(remat=remat) for remat in ("none", "full"))
    assert computed(plain, {}, batch)[0] == step_flops(plain, {}, batch)
    # The blocks' forward pass once more, but not its last product: no gradient asks for it.
    blocks = (step_flops(plain, {}, batch) - 3 * 2 * B * S * D * 40) / 3
    last = 3 * 2 * B * S * 24 * D
    assert computed(remat, {}, batch)[0] == step_flops(plain, {}, batch) + blocks - last


def test_the_bytes_of_products_are_those_of_factors_and_results():
    stage = chain_stage(("a", "b"))  # x a, x b, x c, and the gradient of c
    product = (2 * B * D + D * D) * 4
    assert computed(stage, {}, jnp.zeros((B, D)))[1] == 4 * product


@pytest.mark.parametrize(("precision", "passes"), [(None, 1), ("high", 3), ("highest", 6)])
def test_products_of_fp32_numbers_are_estimated_by_the_passes_of_a_tpu(precision, passes):
    (v5p,) = (entry for entry in ACCELERATORS if entry.name == "v5p")
    with jax.default_matmul_precision(precision):
        flops, _, weighed = computed(
            chain_stage(),
            {},
            jnp.zeros((B, D)),
            weigh=lambda eqn: slowdown(traced_arithmetic(eqn), v5p),
        )
    assert weighed == passes * flops


@pytest.mark.parametrize("pathway", ["transfusion", "query"])
def test_the_stages_of_a_run_are_counted_whole(pathway):
    config = tiny_config(unified__pathway=pathway)
    vision, codec = build_encoder(config).vision.abstract(), build_codec(config).abstract()
    sequence = sequence_config(config)
    batch = pack(documents(ALL, sequence), [[0, 1, 2, 3, 4]], sequence)
    frozen = {"encoder": vision, "codec": codec}
    slots = batch.tokens.size
    reader = unified_stage("pretrain", config).module.transformer
    blocks = sum(x.size for x in jax.tree.leaves(reader.abstract()["blocks"]) if x.ndim == 3)
    flops = step_flops(unified_stage("pretrain", config), frozen, batch)
    assert flops > (6 if pathway == "transfusion" else 2) * slots * blocks
    assert step_flops(encoder_stage("encoder", config), {}, pictures()) > 0
    assert step_flops(codec_stage("codec", config, list), {"encoder": vision}, pictures()) > 0
