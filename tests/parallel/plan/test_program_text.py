"""A compiled program's text: what is read of it, and what it costs."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.scopes import in_module
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.groups import parse_groups, parse_pairs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.plan.products import product_flops

# Two turns of a loop over a stack of weights, as XLA prints it for TPU: a fusion that reads one
# layer, a gather in two pieces of one chain, a sum of which each device keeps a part.
LOOP = Path(__file__).with_name("loop.hlo").read_text()


@pytest.fixture(scope="module")
def costs():
    return count_costs(parse_program(LOOP))


def test_a_line_is_read_with_its_shapes_spaces_and_operands():
    program = parse_program(LOOP)
    assert program.entry == "main" and len(program.computations) == 6
    fusion = program.computations["body"].by_name["next"]
    assert (fusion.opcode, fusion.operands) == ("fusion", ("w", "i", "h"))
    assert fusion.attribute("calls") == "layer"
    assert [(a.shape, a.space, a.nbytes) for a in fusion.outputs] == [((4, 8), 1, 128)]


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse_program("HloModule nothing")


def test_a_loop_counts_as_often_as_its_counter_says(costs):
    step, loop = costs.regions
    assert (step.times, loop.times, loop.name) == (1, 2, "layers")
    assert (step.flops, loop.flops) == (0, 2 * 2 * 4 * 8 * 8)
    assert costs.unknown_loops == 0


def test_pieces_of_one_exchange_count_once_and_a_kept_part_makes_it_a_scatter(costs):
    found = [(one.kind, one.times) for _, one in costs.collectives]
    assert found == [("all-gather", 2), ("reduce-scatter", 2)]


def test_a_fusion_reads_the_slice_that_it_takes_and_nothing_of_what_is_on_the_chip(costs):
    layer, copied, scalars = 8 * 8 * 4, 2 * 8 * 4, 12 + 4
    assert costs.regions[1].nbytes == 2 * (layer + copied + scalars)


def test_a_loop_of_unknown_length_is_reported():
    text = LOOP.replace("%layers = s32[] constant(2)", "%layers = s32[] add(%i, %i)")
    costs = count_costs(parse_program(text))
    assert costs.unknown_loops == 1 and costs.regions[1].times == 1


def test_the_backends_own_count_of_turns_is_taken():
    text = LOOP.replace("body=%body,", 'body=%body, backend_config={"known_trip_count":{"n":"5"}},')
    assert count_costs(parse_program(text)).regions[1].times == 5


# ---- products, against what XLA counts --------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,)])
def test_products_count_as_xla_counts_them(batch):
    x, w = jnp.zeros((*batch, 16, 32)), jnp.zeros((*batch, 32, 8))
    compiled = jax.jit(jnp.matmul).lower(x, w).compile()
    flops = count_costs(parse_program(compiled.as_text())).flops
    assert flops == 2 * 16 * 32 * 8 * np.prod(batch, dtype=int)


@pytest.mark.parametrize("options", [{}, {"window_strides": (2, 2)}, {"lhs_dilation": (2, 2)}])
def test_convolutions_count_as_xla_counts_them(options):
    options = {"window_strides": (1, 1), **options}

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, padding=[(1, 1), (1, 1)], **options)

    x, kernel = jnp.zeros((2, 4, 9, 9)), jnp.zeros((6, 4, 3, 3))
    lowered = jax.jit(convolve).lower(x, kernel)
    program = parse_program(lowered.compile().as_text())
    where = program.computations[program.entry]
    counted = sum(product_flops(where, one) for one in where.instructions)
    assert counted == lowered.compile().cost_analysis()["flops"]


def test_a_batched_product_that_tpu_writes_as_a_convolution_counts_its_real_taps():
    text = """\
ENTRY %main (q: bf16[22,4,9,32], k: bf16[22,4,9,32]) -> f32[22,4,9,9] {
  %q = bf16[22,4,9,32]{3,2,1,0} parameter(0)
  %k = bf16[22,4,9,32]{3,2,1,0} parameter(1)
  ROOT %s = f32[22,4,9,9]{3,2,1,0} convolution(%q, %k), WINDOW, dim_labels=01bf_01oi->01bf
}
""".replace("WINDOW", "window={size=22x4 stride=21x3 lhs_dilate=22x4}")
    assert count_costs(parse_program(text)).flops == 2 * 22 * 4 * 9 * 9 * 32


# ---- groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("channel_id=1", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([0,2,1,3]) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
    ],
)
def test_groups_are_read_from_every_form(text, groups):
    assert parse_groups(text, 4).tolist() == groups


def test_groups_of_an_unknown_form_are_named():
    with pytest.raises(ValueError, match="unknown form: replica_groups=<4>"):
        parse_groups("replica_groups=<4>", 4)


def test_pairs_of_a_permute():
    assert parse_pairs("source_target_pairs={{0,1},{1,0}}").tolist() == [[0, 1], [1, 0]]


KERNELS = {
    "tpu": """backend_config={"custom_call_config":{"body":"TUzvUgFN","cost_estimate":{\
"flops":"4096","transcendentals":"8","bytes_accessed":"512","remote_bytes_transferred":"0"}}}""",
    "gpu": r"""backend_config={ir = "ML\EFR\22\7B(", num_warps = 4 : i32, serialized_metadata = \
"{\22flops\22: \224096\22, \22bytes_accessed\22: \22512\22}"}""".replace("\\\n", ""),
}


@pytest.mark.parametrize("platform", KERNELS)
def test_a_kernel_counts_what_it_says_of_itself(platform):
    text = """HloModule kernel
ENTRY %main (q: bf16[8,128]) -> bf16[8,128] {
  %q = bf16[8,128]{1,0} parameter(0)
  ROOT %kernel = bf16[8,128]{1,0} custom-call(%q), custom_call_target="kernel", """
    printed = count_costs(parse_program(text + KERNELS[platform] + "\n}\n"))
    assert (printed.flops, printed.nbytes) == (4096, 512)
    within = f'{text}metadata={{op_name="jvp(rows)/kernel"}}, {KERNELS[platform]}\n}}\n'
    assert count_costs(parse_program(within), {"rows": 0.25, "row": 0.5}).flops == 1024
    silent = count_costs(parse_program(text + "backend_config={}\n}\n"))
    assert (silent.flops, silent.nbytes) == (0, 2 * 8 * 128 * 2)


@pytest.mark.parametrize(
    ("target", "left", "right", "out"),
    [
        ("BiasActivationForward", "2,8,8,4", "6,3,3,4", "2,8,8,6"),
        ("BackwardInput", "2,8,8,6", "6,3,3,4", "2,8,8,4"),
        ("BackwardFilter", "2,8,8,4", "2,8,8,6", "6,3,3,4"),
    ],
)
def test_a_convolution_of_cudnn_counts_like_its_gradients(target, left, right, out):
    text = f"""HloModule conv
ENTRY %main (x: f32[{left}], y: f32[{right}]) -> f32[{out}] {{
  %x = f32[{left}]{{3,2,1,0}} parameter(0)
  %y = f32[{right}]{{3,2,1,0}} parameter(1)
  ROOT %conv = (f32[{out}]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %y), \
window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$conv{target}"
}}
"""
    assert count_costs(parse_program(text)).flops == 2 * (2 * 8 * 8 * 6) * 3 * 3 * 4


def product_by(name, width):
    return f"""
%{name} (p: f32[8,8]) -> f32[8,{width}] {{
  %p = f32[8,8]{{1,0}} parameter(0)
  %w{name} = f32[8,{width}]{{1,0}} constant({{...}})
  ROOT %y{name} = f32[8,{width}]{{1,0}} dot(%p, %w{name}), lhs_contracting_dims={{1}}, \
rhs_contracting_dims={{0}}, metadata={{op_name="jit(step)/transpose(jvp(module.{name}))/dot"}}
}}
"""


def test_of_branches_the_dearest_counts_because_only_one_runs():
    branches = "".join(product_by(name, 8 * size) for name, size in (("a", 1), ("b", 3), ("c", 2)))
    text = f"""HloModule switch
{branches}
ENTRY %main (i: s32[], x: f32[8,8]) -> f32[8,24] {{
  %i = s32[] parameter(0)
  %x = f32[8,8]{{1,0}} parameter(1)
  ROOT %out = f32[8,24]{{1,0}} conditional(%i, %x, %x, %x), branch_computations={{%a, %b, %c}}
}}
"""
    costs = count_costs(parse_program(text))
    assert costs.flops == 2 * 8 * 8 * 24
    assert {name for name, work in costs.regions[0].modules.items() if work.flops} == {"b"}


def test_work_belongs_to_the_module_in_whose_scope_it_was_traced():
    w = jnp.eye(8)

    @in_module("outer")
    def outer(x):
        return in_module("inner")(jnp.matmul)(x, w)

    def loss(x):
        return jnp.sum((jnp.tanh(outer(x)) @ w) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(jnp.ones((4, 8))).compile()
    (region,) = count_costs(parse_program(compiled.as_text())).regions
    flops = {name: work.flops for name, work in region.modules.items() if work.flops}
    assert flops == {"outer": 2 * 2 * 4 * 8 * 8, "": 2 * 2 * 4 * 8 * 8}
