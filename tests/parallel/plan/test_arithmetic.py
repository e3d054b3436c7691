"""Products of fp32 numbers take as long as their hardware needs for them, not as bfloat16 ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from unicom_jax.core.precision import precision_of
from unicom_jax.parallel.accelerators import ACCELERATORS
from unicom_jax.parallel.plan.arithmetic import Arithmetic, slowdown, traced_arithmetic
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program

V5P, A100, H100 = (
    next(entry for entry in ACCELERATORS if entry.name == name) for name in ("v5p", "a100", "h100")
)
WIDE, HALF = jnp.zeros((4, 8)), jnp.zeros((4, 8), jnp.bfloat16)
HIGHEST = jax.lax.Precision.HIGHEST

# A product as XLA prints it for TPU and for GPU; what differs is in capitals.
TPU = """\
ENTRY %main (x: LEFT[512,1024], w: RIGHT[1024,256]) -> f32[512,256] {
  %x = LEFT[512,1024]{1,0} parameter(0)
  %w = RIGHT[1024,256]{1,0} parameter(1)
  ROOT %y = f32[512,256]{1,0} convolution(%x, %w), dim_labels=bf_io->bfPRECISION, metadata={}
}
"""
GPU = """\
ENTRY %main (x: LEFT[512,1024], w: RIGHT[1024,256]) -> f32[512,256] {
  %x = LEFT[512,1024]{1,0} parameter(0)
  %w = RIGHT[1024,256]{1,0} parameter(1)
  ROOT %y = (f32[512,256]{1,0}, s8[64]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},\
"precision_config":{"operand_precision":["PRECISION","PRECISION"],"algorithm":"ALGORITHM"}}}
}
"""
CUDNN = """\
ENTRY %main (x: f32[2,8,8,4], w: f32[4,3,3,4]) -> f32[2,8,8,4] {
  %x = f32[2,8,8,4]{3,2,1,0} parameter(0)
  %w = f32[4,3,3,4]{3,2,1,0} parameter(1)
  ROOT %y = (f32[2,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01fPRECISION, custom_call_target="__cudnn$convForward"
}
"""


def how(text):
    """The one way in which a program computes its products."""
    (found,) = count_costs(parse_program(text)).regions[0].modules[""].products
    return found


@pytest.mark.parametrize(
    ("left", "right", "precision", "passes"),
    [
        ("bf16", "bf16", "", 1),
        ("bf16", "bf16", ", operand_precision={highest,highest}", 1),
        ("f32", "f32", "", 1),
        ("f32", "f32", ", operand_precision={high,high}", 3),
        ("f32", "f32", ", operand_precision={highest,highest}", 6),
        ("bf16", "f32", ", operand_precision={highest,highest}", 3),
    ],
)
def test_a_tpu_multiplies_fp32_numbers_in_passes_of_bf16(left, right, precision, passes):
    text = TPU.replace("LEFT", left).replace("RIGHT", right).replace("PRECISION", precision)
    assert slowdown(how(text), V5P) == passes


@pytest.mark.parametrize(
    ("dtype", "precision", "algorithm", "peak"),
    [
        ("bf16", "HIGHEST", "ALG_UNSET", 989e12),
        ("f32", "DEFAULT", "ALG_UNSET", 494.5e12),
        ("f32", "HIGH", "ALG_UNSET", 494.5e12),
        ("f32", "HIGHEST", "ALG_UNSET", 67e12),
        ("f32", "DEFAULT", "ALG_DOT_F32_F32_F32", 67e12),
        ("f32", "HIGHEST", "ALG_DOT_TF32_TF32_F32", 494.5e12),
    ],
)
def test_a_gpu_multiplies_fp32_numbers_in_tf32_or_outside_of_its_tensor_cores(
    dtype, precision, algorithm, peak
):
    text = GPU.replace("LEFT", dtype).replace("RIGHT", dtype)
    found = how(text.replace("PRECISION", precision).replace("ALGORITHM", algorithm))
    assert H100.flops / slowdown(found, H100) == pytest.approx(peak)


def test_convolutions_of_a_library_have_a_precision_too():
    exact = CUDNN.replace("PRECISION", ", operand_precision={highest,highest}")
    assert A100.flops / slowdown(how(exact), A100) == pytest.approx(19.5e12)
    assert A100.flops / slowdown(how(CUDNN.replace("PRECISION", "")), A100) == pytest.approx(156e12)


@pytest.mark.parametrize(
    ("left", "right", "precision", "expected"),
    [
        (HALF, HALF, HIGHEST, Arithmetic()),
        (WIDE, WIDE, None, Arithmetic(True, True, "default")),
        (WIDE, WIDE, precision_of(jnp.float32), Arithmetic(True, True, "highest")),
        (HALF, WIDE, HIGHEST, Arithmetic(False, True, "highest")),
    ],
)
def test_an_estimate_reads_the_same_from_a_traced_product(left, right, precision, expected):
    (eqn,) = jax.make_jaxpr(
        lambda a, b: jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision)
    )(left, right).eqns
    assert traced_arithmetic(eqn) == expected
