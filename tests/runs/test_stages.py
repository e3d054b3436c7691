"""The registry of stages: occurrences, their order, their seeds, and what older runs did."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.data.samples import tokenizer
from tests.tiny import tiny_config
from unicom_jax.config import STAGES as DECLARED
from unicom_jax.config import ConfigError, complete, to_json
from unicom_jax.config.schema import stage_defaults
from unicom_jax.families.build import FAMILIES
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.planning.program import ABSTRACT
from unicom_jax.runs import stages
from unicom_jax.runs.configuration import open_run
from unicom_jax.runs.loading import LOADERS, stage_loader
from unicom_jax.runs.stages import PARTS, STAGES, Occurrence
from unicom_jax.runs.trained import furthest, stages_before, starts_from
from unicom_jax.training.assemble import make_trainer
from unicom_jax.training.stages import LOSSES


def labels(found):
    return [one.label for one in found]


def run_of(*names, **overrides):
    return tiny_config(stages=names, data__vocab_size=tokenizer().vocab_size, **overrides)


def put(workdir, *there):
    for label in there:
        (workdir / label / "checkpoints" / "3").mkdir(parents=True)


# ---- the tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
def test_a_row_finds_what_it_refers_to(name):
    spec = STAGES[name]
    assert spec.name == name and spec.part in PARTS and spec.loss in LOSSES
    assert spec.loader in LOADERS and spec.loader in ABSTRACT
    specs = {part: PARTS[part].build(tiny_config()).specs() for part in PARTS}
    config = tiny_config()
    for key, subtree in {**spec.reads(config), **spec.begins_with(config)}.items():
        assert subtree.of(specs[subtree.part]), key


MROPE = {
    "unified__image_positions": "mrope",
    "unified__transformer__rope_sections": (2, 3, 3),
    "unified__fold": 2,
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, MROPE if name == "uae" else {}) for name in FAMILIES),
        ("cheers", {"unified__cheers__pixels": False}),
        ("cheers", {"autoencoder__quant_conv": False}),
        ("uae", {**MROPE, "autoencoder__quant_conv": False}),
    ],
)
def test_a_family_speaks_of_weights_that_there_are(name, settings):
    config, family = tiny_config(unified__pathway=name, **settings), FAMILIES[name]
    parts = {part: made.build(config).abstract() for part, made in PARTS.items()}
    for key, subtree in family.starts_from(config).items():
        given = subtree.of(parts[subtree.part])
        assert given == {name: parts["unified"][key][name] for name in given}
        assert parts["unified"][key].keys() - given.keys() == set(subtree.fresh)
    trees = {tree: of.of(parts[of.part]) for tree, of in family.in_model.items()}
    assert family.codec(config).abstract() == trees["codec"]
    wanted = {name: of.of(parts[of.part]) for name, of in family.frozen.items()}
    assert family.frozen_of(trees) == wanted


# ---- occurrences --------------------------------------------------------------------------


def test_a_repeated_stage_is_counted_from_its_second_time_on():
    found = stages.occurrences(("pretrain", "sft") * 2)
    assert labels(found) == ["pretrain", "sft", "pretrain-2", "sft-2"]
    assert [stages.parse(one.label) for one in found] == found


@pytest.mark.parametrize("label", ["", "sft-", "sft-1", "sft-02", "sft-x", "other", "other-2"])
def test_what_is_no_label_of_a_stage_is_not_read_as_one(label):
    assert stages.parse(label) is None


def test_a_label_chooses_one_occurrence():
    config = run_of("pretrain", "sft", "pretrain")
    assert labels(stages.select(config, None)) == ["pretrain", "sft", "pretrain-2"]
    assert stages.select(config, ["pretrain-2"]) == [Occurrence("pretrain", 2)]


@pytest.mark.parametrize("label", ["sft-2", "unknown"])
def test_an_occurrence_that_no_stage_has_is_refused_with_those_that_there_are(label):
    with pytest.raises(ConfigError, match=f"{label}.*is unknown; stages are .*pretrain-2"):
        stages.select(run_of("pretrain", "pretrain"), [label])


def test_the_configuration_decides_the_order_and_the_registry_places_the_rest():
    config = run_of("sft", "pretrain", "sft")
    also = [Occurrence("encoder"), Occurrence("continue")]
    order = ["encoder", "sft", "pretrain", "continue", "sft-2"]
    assert labels(stages.in_order(config, also)) == order


def test_a_stage_builds_on_the_furthest_before_it_and_a_user_gets_the_furthest_of_all(tmp_path):
    config = run_of("encoder", "codec", "pretrain", "sft", "pretrain")
    put(tmp_path, "encoder", "codec", "pretrain", "sft")
    again = Occurrence("pretrain", 2)
    assert furthest(config, tmp_path, "unified", before=again) == Occurrence("sft")
    assert furthest(config, tmp_path, "unified", before=Occurrence("pretrain")) is None
    assert labels(stages_before(config, tmp_path, Occurrence("pretrain"))) == ["encoder", "codec"]
    put(tmp_path, "pretrain-2")
    assert furthest(config, tmp_path, "unified") == again
    assert furthest(config, tmp_path, "unified", before=again) == Occurrence("sft")


def test_a_stage_does_not_start_afresh_where_a_later_one_has_weights(tmp_path):
    config = run_of("pretrain", "sft", "pretrain")
    first, again = Occurrence("sft"), Occurrence("pretrain", 2)
    put(tmp_path, "encoder", "codec")
    assert starts_from(config, tmp_path, first) is None
    put(tmp_path, "pretrain-2")
    with pytest.raises(ConfigError, match="sft would not start from the weights of pretrain-2"):
        starts_from(config, tmp_path, first)
    assert starts_from(config, tmp_path, again) is None  # it resumes
    put(tmp_path, "pretrain")
    assert starts_from(config, tmp_path, first) == Occurrence("pretrain")


def test_a_stage_that_the_configuration_no_longer_lists_keeps_its_place(tmp_path):
    put(tmp_path, "pretrain", "sft")
    assert furthest(run_of("pretrain"), tmp_path, "unified") == Occurrence("sft")


# ---- seeds --------------------------------------------------------------------------------


def batch_of(config, label, split="train"):
    loader = stage_loader(config, label, tokenizer(), split)
    try:
        return next(loader).tokens
    finally:
        loader.close()


def test_two_stages_of_the_same_mixture_read_different_documents():
    config = run_of("pretrain", "sft", "pretrain")
    read = [batch_of(config, label) for label in ("pretrain", "sft", "pretrain-2", "pretrain")]
    assert np.array_equal(read[0], read[3])
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(read[left], read[right])


def test_all_stages_are_measured_on_the_same_held_out_documents():
    config = run_of("pretrain", "pretrain")
    held_out = [batch_of(config, label, "eval") for label in ("pretrain", "pretrain-2")]
    assert np.array_equal(*held_out)


def test_picture_stages_read_their_pictures_in_different_orders():
    config = run_of("encoder", "codec")
    assert not np.array_equal(batch_of(config, "encoder"), batch_of(config, "codec"))


def test_without_stage_seeds_all_stages_read_the_same_documents_as_older_runs_did():
    config = run_of("pretrain", "sft", stage_seeds=False)
    assert np.array_equal(batch_of(config, "pretrain"), batch_of(config, "sft"))
    assert stages.data_seed(config, "sft") is None and stages.noise_fold(config, "sft") is None


def test_a_seed_depends_on_the_runs_seed_and_on_the_label_alone():
    seeds = {
        stages.data_seed(run_of("pretrain", seed=seed), label)
        for seed in (0, 1)
        for label in ("pretrain", "pretrain-2", "sft")
    }
    assert len(seeds) == 6 and all(0 <= seed < 2**31 for seed in seeds)
    assert stages.data_seed(run_of("pretrain"), "sft") == 757751806  # resumed runs rely on it


@pytest.mark.parametrize("label", ["encoder", "pretrain"])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_stage_with_a_seed_of_its_own_reads_what_a_run_of_that_seed_would(label, split):
    own = run_of("encoder", "pretrain", seed=5, **{f"{label}__seed": 1})
    assert np.array_equal(
        batch_of(own, label, split), batch_of(run_of("encoder", "pretrain", seed=1), label, split)
    )


def test_a_stage_with_a_seed_of_its_own_has_its_weights_and_noise_and_others_keep_the_runs():
    config = run_of("encoder", "codec", seed=5, encoder__seed=1)
    trainers = [
        make_trainer(label, config, make_mesh(), lambda: iter(())) for label in ("encoder", "codec")
    ]
    assert [one.seed for one in trainers] == [1, 5]


# ---- older runs ---------------------------------------------------------------------------


def older(config) -> dict:
    """As a run from before these keys stored it."""
    stored = json.loads(to_json(config))
    del stored["stage_seeds"], stored["sft"]["init_from"]
    del stored["data"]["balance_rows"], stored["data"]["fill_rows"]
    return stored


def test_a_run_from_before_stage_seeds_and_balanced_and_filled_rows_keeps_its_rules(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(older(tiny_config())))
    put(tmp_path, "encoder")
    assert open_run(tmp_path, None, []).stage_seeds is False
    given = tmp_path / "given.py"
    given.write_text("from tests.tiny import tiny_config as get_config\n")
    config = open_run(tmp_path, str(given), [])
    assert config.stage_seeds is False and config.sft.init_from == ""
    assert config.data.balance_rows is config.data.fill_rows is False
    with pytest.raises(ConfigError, match="started with stage_seeds=False, now it is True"):
        open_run(tmp_path, str(given), ["--config.stage_seeds=True"])


def test_a_stage_that_an_older_run_has_no_settings_for_gets_the_usual_ones():
    stored = older(tiny_config())
    del stored["align"]
    assert complete(stored)["align"] == stage_defaults("align").to_dict()


def test_every_stage_has_settings():
    assert STAGES.keys() == DECLARED.keys()
