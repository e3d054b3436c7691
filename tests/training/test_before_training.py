"""What is wrong with a later stage is said before the first one trains, and nothing is kept."""

from __future__ import annotations

import pytest

from tests.tiny import UAE, tiny_config
from tests.training.conftest import go
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.stages import select
from unicom_jax.runs.trained import check_order


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrain__freeze": ("nothing",)}, "pretrain.freeze='nothing' matches no weight"),
        (
            {"pretrain__lora__rank": 2, "pretrain__lora__targets": ("nothing",)},
            "pretrain.lora.targets: 'nothing' matches no linear layer",
        ),
        ({"pretrain__groups": ({"match": "x"},)}, r"pretrain.groups\[0\]: match='x' matches no"),
    ],
    ids=["freeze", "lora", "groups"],
)
def test_a_mistake_in_the_last_stage_costs_no_training_and_is_not_stored(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        go(tmp_path / "run", **changes)
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name != "tokenizer"]


def order(workdir, *stages, there=(), only=None, **changes):
    for label in there:
        (workdir / label / "checkpoints" / "3").mkdir(parents=True)
    config = tiny_config(stages=stages, **changes)
    check_order(config, workdir, select(config, only))


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (("codec", "encoder"), "stage codec builds on encoder, .* list it earlier in config.stag"),
        (("encoder", "pretrain", "codec"), "stage pretrain builds on codec, .* list it earlier"),
        (("encoder", "pretrain"), "stage pretrain builds on codec, .* list codec before pretrain"),
        (
            ("encoder", "codec", "g4u"),
            "stage g4u builds on align or pretrain or continue or sft or longcap or reca,",
        ),
    ],
    ids=str,
)
def test_a_stage_whose_weights_nothing_gives_is_refused(tmp_path, stages, words):
    with pytest.raises(CheckpointError, match=words):
        order(tmp_path, *stages)


def test_a_reward_that_compares_features_needs_an_encoder_where_the_model_has_none(tmp_path):
    there = ("autoencoder", "longcap")
    uae = {**UAE, "there": there, "only": ["u4g"]}
    order(tmp_path / "pixels", *there, "u4g", **uae, u4g__rewards__cosine=0.0)
    words = "stage u4g builds on encoder, .* before u4g .*, set u4g.rewards.cosine=0, or import its"
    with pytest.raises(CheckpointError, match=words):
        order(tmp_path / "none", *there, "u4g", **uae)
    uae["there"] = (*there, "encoder")
    order(tmp_path / "encoder", *there, "u4g", **uae)


def test_a_stage_may_build_on_what_is_there_or_what_is_trained_before_it(tmp_path):
    order(tmp_path, "encoder", "codec", "align", "pretrain", "g4u", "u4g")
    order(tmp_path, "encoder", "codec", "pretrain", there=("encoder", "codec"), only=["pretrain"])
    order(tmp_path, "encoder", "autoencoder", "align", "pretrain", unified__pathway="cheers")
