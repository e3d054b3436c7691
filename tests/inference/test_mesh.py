"""Generation on a mesh: the results of one device, with every weight where it belongs."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.segments import UNDERSTOOD, Image, Text
from tests.data.samples import picture, tokenizer
from tests.families.documents import lively
from tests.inference.eight import results
from tests.parallel.programs import on_eight_devices
from tests.runs.workdirs import write_run
from tests.tiny import tiny_config
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.text import Sampling
from unicom_jax.runs import weights

MESH = "data=2,fsdp=2,tensor=2"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("mesh") / "run", unified__transformer__tied_head=False)


@pytest.fixture(scope="module")
def eight(workdir):
    done = on_eight_devices("-m", "tests.inference.eight", str(workdir), MESH)
    return json.loads(done.stdout.splitlines()[-1])


def test_eight_devices_give_the_results_of_one(workdir, eight):
    one = results(Generator.load(workdir))
    found = eight["results"]
    assert eight["devices"] == 8 and found["words"] == one["words"]
    for name in ("pictures", "reconstructed"):  # up to the rounding of a byte
        assert np.abs(np.array(found[name]) - one[name]).max() <= 1
    np.testing.assert_allclose(found["features"], one["features"], rtol=1e-4, atol=1e-4)


def test_weights_are_read_into_parts_and_caches_are_split(eight):
    """Tensor and fsdp divide most weights by four; the rows of a cache go over data and fsdp."""
    assert eight["largest_share"] < 0.45
    assert eight["largest_share_of_cache"] == 1 / 4


# ---- in the compute dtype -----------------------------------------------------------------------


def test_weights_for_use_are_cast_where_no_number_changes():
    """bfloat16 weights see and write to the bit what fp32 ones do, cast where they are used."""
    config = tiny_config(
        data__vocab_size=tokenizer().vocab_size,
        compute_dtype="bfloat16",
        evaluation__batch_size=2,
        unified__transformer__qk_norm=True,
        unified__understanding="sequence_concat",
    )
    modules = {
        "vision": build_encoder(config).vision,
        "codec": build_codec(config),
        "unified": build_unified(config),
    }
    params = {name: lively(module, 3, 0.3) for name, module in modules.items()}
    wanted = {
        name: weights.abstract_weights(module, name, config) for name, module in modules.items()
    }
    cast = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), params, wanted)
    bytes_of = [sum(x.nbytes for x in jax.tree.leaves(tree["unified"])) for tree in (params, cast)]
    assert bytes_of[1] < 0.66 * bytes_of[0]
    one, other = (Generator(config, tokenizer(), tree) for tree in (params, cast))
    said = [Image(picture(1, 32, 32), UNDERSTOOD), Text("how many?")]
    sampling = Sampling(temperature=1.0)  # a bit's difference in the logits would soon show
    words = [each.tokens(said, max_tokens=12, sampling=sampling)[0] for each in (one, other)]
    np.testing.assert_array_equal(*words)


def test_a_run_in_bfloat16_is_loaded_in_it(tmp_path):
    generator = Generator.load(write_run(tmp_path / "run", compute_dtype="bfloat16"))
    blocks = generator.params["unified"]["transformer"]["blocks"]
    assert blocks["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    assert blocks["mlp_norm"]["scale"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(generator.params["codec"])} == {jnp.dtype("float32")}
