"""What an export has in common with its run, and with the run that is imported from it."""

from __future__ import annotations

import accelerate
import numpy as np
from safetensors.numpy import load_file
from transformers import AutoModel

from tests.data.samples import picture
from unicom_jax.config import from_json
from unicom_jax.inference.verify import LIMITS, reference_of
from unicom_jax.interop.pytorch.verify_unicom import differences
from unicom_jax.runs.checkpoint import read_config

# What a frozen encoder gives, which families that draw in an autoencoder's latents do not have.
OF_ENCODERS = {"features", "pooled features"}


def load(folder, kind=AutoModel, **options):
    return kind.from_pretrained(folder, trust_remote_code=True, **options)


def assert_same_outputs(generator, model):
    """All outputs of a family without a frozen encoder are within the limits of `--verify`."""
    reference = reference_of(generator)
    found = differences(model, {key: np.asarray(value) for key, value in reference.items()})
    assert found.keys() == LIMITS.keys() - OF_ENCODERS
    assert not {name: value for name, value in found.items() if not value <= LIMITS[name][0]}


def assert_same_run(run, imported):
    """Two workdirs have one configuration, but for the stages, of which an import has the last."""
    before, after = (from_json(read_config(path)) for path in (run, imported))
    before.stages = after.stages
    assert before == after


def assert_same_weights(exported, other):
    """Two folders have the same tensors, bit for bit."""
    one, two = (load_file(path / "model.safetensors") for path in (exported, other))
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


def assert_same_offloaded(exported, model, buffers: bool):
    """The model writes and draws the same with its weights, and `buffers`, offloaded."""
    away = accelerate.cpu_offload(load(exported), execution_device="cpu", offload_buffers=buffers)
    assert away.device.type == "meta"
    images = [picture(1, 32, 32)]
    assert away.caption(images) == model.caption(images)
    words = ["a red dot", "two stars"]
    for one, other in (
        (away.draw(words), model.draw(words)),
        (away.reconstruct(images), model.reconstruct(images)),
    ):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
