"""How weights of a unified model grow from those of a smaller one, and where they start."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments import quickstart
from unicom_jax.core.module import ParamSpec, init_params, iter_specs
from unicom_jax.core.transfer import Growth, growth, rescaled
from unicom_jax.families.build import build_unified

TUNED_AT = ("transformer.width=48", "transformer.heads=2", "transformer.kv_heads=1",
            "transformer.mlp_dim=128", "transformer.depth=2")  # fmt: skip


def config(tuned_at=TUNED_AT, **sizes):
    made = quickstart.get_config()
    made.data.vocab_size = 512
    grown = {"width": 192, "heads": 8, "kv_heads": 4, "mlp_dim": 512, "depth": 6, **sizes}
    made.unified.transformer.update({**grown, "head_dim": 24, "tied_head": False})
    made.unified.tuned_at = tuned_at
    return made


@pytest.fixture(scope="module")
def model():
    return build_unified(config())


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("transformer/embedding/table", Growth(True, 1, 4, 1, False)),
        ("transformer/blocks/attention/query/kernel", Growth(True, 4, 4, 3, False)),
        ("transformer/blocks/attention/query/bias", Growth(False, 1, 4, 3, False)),
        ("transformer/blocks/attention/out/kernel", Growth(True, 4, 4, 3, True)),
        ("transformer/blocks/mlp/gate/kernel", Growth(True, 4, 4, 3, False)),
        ("transformer/blocks/mlp/down/kernel", Growth(True, 4, 4, 3, True)),
        ("transformer/blocks/mlp_norm/scale", Growth(False, 1, 4, 3, False)),
        ("transformer/norm/scale", Growth(False, 1, 4, 1, False)),
        ("transformer/head/kernel", Growth(True, 4, 1, 1, False)),
        ("embedding/latent_in/kernel", Growth(True, 1, 4, 1, False)),
        ("head/output/kernel", Growth(True, 4, 1, 1, False)),
        ("head/output/bias", Growth(False, 1, 1, 1, False)),
    ],
)
def test_each_kind_of_weight_is_told_from_its_shapes(model, path, expected):
    assert model.grown()[tuple(path.split("/"))] == expected


def test_each_block_ends_two_branches(model):
    ends = {path[2:4] for path, own in model.grown().items() if own.ends_branch}
    assert ends == {("attention", "out"), ("mlp", "down")}


def test_branches_of_connectors_and_flow_decoders_end_too():
    made = config()
    made.unified.pathway = "query"
    grown = build_unified(made).grown()
    ends = {"/".join(path[:-1]) for path, own in grown.items() if own.ends_branch}
    assert {path for path in ends if not path.startswith("transformer/")} == {
        "connector/attention/out",
        "connector/mlp/down",
        "flow_decoder/blocks/output",
        "flow_decoder/blocks/mlp/down",
    }


def test_initial_sizes_follow_the_table(model):
    def sizes(made):
        params = init_params(made.specs()["transformer"], jax.random.key(0))
        flat = {
            "table": params["embedding"]["table"],
            "query": params["blocks"]["attention"]["query"]["kernel"],
            "down": params["blocks"]["mlp"]["down"]["kernel"],
            "head": params["head"]["kernel"],
        }
        return {name: float(np.std(leaf)) for name, leaf in flat.items()}

    small, large = sizes(model.tuned), sizes(model)
    ratios = {name: large[name] / small[name] for name in small}
    expected = {"table": 1, "query": 1 / 2, "down": 1 / 2 / 3, "head": 1 / 4}
    assert ratios == pytest.approx(expected, rel=0.05)


def test_a_model_of_the_tuned_sizes_starts_as_without_the_key():
    sizes = ("transformer.width=192", "transformer.depth=6")
    with_key, without = build_unified(config(tuned_at=sizes)), build_unified(config(tuned_at=()))
    assert all(own.initial == 1 for own in with_key.grown().values())
    first, second = dict(iter_specs(with_key.specs())), dict(iter_specs(without.specs()))
    key, path = jax.random.key(1), ("transformer", "head", "kernel")
    same = [one[path].init(key, one[path].shape, one[path].dtype) for one in (first, second)]
    np.testing.assert_array_equal(*same)


def test_models_with_other_weights_or_axes_are_refused():
    one, other = {"a": ParamSpec((2,), (None,))}, {"b": ParamSpec((2,), (None,))}
    with pytest.raises(ValueError, match="only one of the two models has a, b"):
        growth(one, other)
    with pytest.raises(ValueError, match=r"a has axes \(None,\) in one model and \('embed',\)"):
        growth(one, {"a": ParamSpec((2,), ("embed",))})


def test_rescaled_specs_keep_shapes_and_axes(model):
    specs = {"kernel": ParamSpec((8, 4), ("embed", None))}
    small = {"kernel": ParamSpec((2, 4), ("embed", None))}
    scaled = rescaled(specs, growth(specs, small))["kernel"]
    plain = specs["kernel"].init(jax.random.key(0), (8, 4), np.float32)
    assert (scaled.shape, scaled.axes) == ((8, 4), ("embed", None))
    np.testing.assert_allclose(scaled.init(jax.random.key(0), (8, 4), np.float32), plain / 2)
