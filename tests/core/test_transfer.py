"""How weights of a unified model grow from those of a smaller one, and where they start."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments import quickstart
from tests.tiny import tiny_config
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


STACKS = {
    "transfusion": {"head.depth": "head/blocks/mlp"},
    "query": {
        "connector.depth": "connector/attention connector/mlp",
        "flow_decoder.depth": "flow_decoder/blocks flow_decoder/blocks/mlp",
    },
    "cheers": {
        "cheers.semantics.depth": "head/semantics/blocks/attention head/semantics/blocks/mlp",
        "cheers.details.depth": "head/details/blocks/attention head/details/blocks/mlp",
    },
    "uae": {
        "uae.decoder.depth": "decoder/transformer/joint/image decoder/transformer/joint/image/mlp "
        "decoder/transformer/joint/context decoder/transformer/joint/context/mlp",
    },
}


@pytest.mark.parametrize(
    ("pathway", "name", "branches"),
    [(pathway, *each) for pathway, stacks in STACKS.items() for each in stacks.items()],
)
def test_branches_of_every_stack_end_where_they_are_added(pathway, name, branches):
    made = tiny_config(unified__pathway=pathway, unified__head__kind="adaln")
    made.unified.transformer.tied_head = False
    if pathway == "uae":
        made.unified.image_positions = "mrope"
        made.unified.transformer.rope_sections = (2, 3, 3)
    made.unified.tuned_at = (f"{name}=5",)
    grown = build_unified(made).grown()
    ends = {"/".join(path[:-2]) for path, own in grown.items() if own.branch != 1}
    assert ends == set(branches.split())


def test_a_tuned_model_that_cannot_be_built_is_named():
    made = tiny_config(unified__pathway="query", unified__tuned_at=("transformer.width=33",))
    with pytest.raises(ValueError, match=r"^unified.tuned_at=transformer.width=33: of the tuned"):
        build_unified(made)


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
