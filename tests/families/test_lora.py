"""Every linear layer of the unified model adds its adapter; merged weights give the same losses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.families.documents import ALL, PACKED, documents, inputs, lively, make_model
from unicom_jax.core.layers import ADAPTER
from unicom_jax.core.lora import Lora, base_weights, merge

pytestmark = pytest.mark.usefixtures("noise_is_given")


@pytest.mark.parametrize("pathway", ["transfusion", pytest.param("query", marks=pytest.mark.slow)])
def test_adapters_of_all_layers_have_an_effect_and_merge_into_the_same_losses(pathway):
    model, sequence = make_model(unified__pathway=pathway)
    params = lively(Lora(model, rank=2, alpha=1.0, targets=(".*",)))
    arguments = inputs(documents(ALL, sequence), PACKED, sequence)

    def total(params):
        terms = model.loss_terms(params, *arguments)
        return 5.0 * terms["flow"][0] + terms["text"][0], terms

    losses = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, apart), gradient = losses(params)
    flat = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree.leaves_with_path(gradient)
        if ADAPTER in [key.key for key in path]
    }
    assert len(flat) > 20
    assert [name for name, leaf in flat.items() if not np.any(leaf)] == []
    plain = jax.jit(lambda params: total(params)[1])
    merged, base = plain(merge(params)), plain(base_weights(params))
    for term in ("flow", "text"):
        np.testing.assert_allclose(apart[term][0], merged[term][0], rtol=1e-5)
        assert abs(float(base[term][0] / merged[term][0]) - 1) > 1e-3
