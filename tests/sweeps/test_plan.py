"""Sweep files, and the plan of stages by what they depend on."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiments.sweeps import smoke
from tests.data.samples import tokenizer
from tests.tiny import tiny_config
from unicom_jax.config import KEYS, ConfigError, from_json
from unicom_jax.config.key import NEUTRAL
from unicom_jax.config.schema import STAGES as SETTINGS
from unicom_jax.config.schema import value_at
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs.loading import stage_loader
from unicom_jax.runs.stages import STAGES, Occurrence, occurrences
from unicom_jax.sweeps.addresses import (
    FREE,
    FREE_OF_STAGES,
    addresses,
    ancestors,
    keys_read,
    parents,
)
from unicom_jax.sweeps.plan import make_plan, read_job, stage_jobs, write_jobs
from unicom_jax.sweeps.sweep import Contrast, Sweep, load_sweep, variant_config
from unicom_jax.training.assemble import make_trainer

SMOKE = "experiments/sweeps/smoke.py"


def sweep(**changes) -> Sweep:
    given = {
        "claim": "One is better.",
        "config": tiny_config(),
        "variants": {"one": {}, "two": {"pretrain.learning_rate": 0.5}},
        "seeds": (0,),
        "scores": ("understanding/qa",),
        "minutes": 1,
    }
    return Sweep(**{**given, **changes})


def address_of(label: str, **overrides) -> str:
    config = tiny_config(**overrides)
    return {stage.label: found for stage, found in addresses(config).items()}[label]


# ---- what a stage depends on ------------------------------------------------------------------


@contextlib.contextmanager
def recorded(config: ConfigDict):
    """The keys that are read of a configuration."""
    seen, paths, real = set(), {}, ConfigDict.__getitem__

    def find(node: ConfigDict, prefix: str) -> None:
        paths[id(node)] = prefix
        for name, value in node.items():
            if isinstance(value, ConfigDict):
                find(value, f"{prefix}{name}.")

    def get(self, key):
        seen.add(f"{paths.get(id(self), '?')}{key}")
        return real(self, key)

    find(config, "")
    ConfigDict.__getitem__ = get
    try:
        yield seen
    finally:
        ConfigDict.__getitem__ = real


OF_EACH_KIND = {(spec.part, spec.loss): label for label, spec in STAGES.items()}.values()


@pytest.mark.parametrize("label", OF_EACH_KIND)
def test_a_stage_depends_on_every_key_that_building_it_and_its_batches_reads(label):
    words = tokenizer()
    config = tiny_config(stages=(label,), data__vocab_size=words.vocab_size)
    with recorded(config) as seen:
        make_trainer(label, config, make_mesh(config.mesh), lambda: iter(()), words)
        next(iter(stage_loader(config, label, words)))
        STAGES[label].tokens_per_step(config, label)
    known = {*keys_read(config, Occurrence(label)), *FREE}
    read = {name for name in seen if name in KEYS and name.partition(".")[2] not in FREE_OF_STAGES}
    assert len(read) > 20 and not read - known


def test_keys_that_no_result_depends_on_are_declared_neutral():
    of_stages = {f"{stage}.{name}" for stage in SETTINGS for name in FREE_OF_STAGES}
    for name in (FREE | of_stages) & KEYS.keys():
        assert KEYS[name].resume == NEUTRAL, name
    assert all(any(key.endswith(f".{name}") for key in KEYS) for name in FREE_OF_STAGES)


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ({"pretrain__learning_rate": 0.5}, ["pretrain"]),
        ({"pretrain__steps": 9}, ["pretrain"]),
        ({"unified__transformer__width": 64}, ["pretrain"]),
        ({"codec__steps": 9}, ["codec", "pretrain"]),
        ({"codec__latent_dim": 16}, ["codec", "pretrain"]),
        ({"codec__pool": 2}, ["encoder", "codec", "pretrain"]),
        ({"encoder__learning_rate": 0.5}, ["encoder", "codec", "pretrain"]),
        ({"data__scenes__jitter": 0.01}, ["encoder", "codec", "pretrain"]),
        ({"data__fingerprint": "of-new-data"}, ["encoder", "codec", "pretrain"]),
        ({"seed": 1}, ["encoder", "codec", "pretrain"]),
        ({"seed": 1, "encoder__seed": 0}, ["codec", "pretrain"]),
        ({"seed": 1, "encoder__seed": 0, "codec__seed": 0}, ["pretrain"]),
        ({"encoder__seed": 1}, ["encoder", "codec", "pretrain"]),
        ({"pretrain__seed": 1}, ["pretrain"]),
        ({"sft__learning_rate": 0.5}, []),
        ({"sample__guidance": 5.0}, []),
        ({"evaluation__pictures": 4}, []),
        ({"data__threads": 7, "encoder__keep": 1, "mesh": "fsdp=1"}, []),
    ],
)
def test_a_change_gives_new_addresses_to_the_stages_that_it_reaches_alone(changed, stages):
    labels = ("encoder", "codec", "pretrain")
    differ = [label for label in labels if address_of(label) != address_of(label, **changed)]
    assert differ == stages


def test_a_key_that_came_later_changes_no_address_at_the_value_of_older_runs(monkeypatch):
    """`before` of a key is what runs did that were stored without it."""
    before = address_of("pretrain")
    monkeypatch.delitem(KEYS, "pretrain.eval_by_task")
    monkeypatch.delitem(KEYS, "unified.z_loss")
    assert KEYS.keys() and address_of("pretrain") == before


def test_sampling_matters_to_a_stage_that_is_sampled_while_it_trains():
    watched = {"pretrain__sample_every": 2}
    one, other = (address_of("pretrain", **watched, sample__guidance=g) for g in (2.0, 5.0))
    assert one != other


def test_lengths_of_rows_matter_to_every_stage_where_texts_are_cut_into_rows():
    text = {"data__source__kind": "text", "data__source__path": "texts.jsonl"}
    one, other = (address_of("encoder", **text, pretrain__sequence_length=n) for n in (96, 128))
    assert one != other


def test_a_stage_needs_those_that_it_reads_and_the_one_before_it_of_its_part():
    config = tiny_config(stages=("encoder", "codec", "pretrain", "pretrain", "sft"))
    labels = [stage.label for stage in occurrences(config.stages)]
    needs = {s.label: [p.label for p in parents(config, s)] for s in occurrences(config.stages)}
    assert needs == {
        "encoder": [],
        "codec": ["encoder"],
        "pretrain": ["encoder", "codec"],
        "pretrain-2": ["encoder", "codec", "pretrain"],
        "sft": ["encoder", "codec", "pretrain-2"],
    }
    assert [one.label for one in ancestors(config, Occurrence("sft"))] == labels[:-1]
    assert len(set(addresses(config).values())) == 5


# ---- the plan ---------------------------------------------------------------------------------


def test_the_smoke_sweep_trains_encoder_and_codec_once_a_seed():
    plan = make_plan(load_sweep(SMOKE))
    counts = plan.shared()
    by_stage = {}
    for id, runs in counts.items():
        by_stage.setdefault(plan.jobs[id].label, []).append(runs)
    assert by_stage == {"encoder": [3, 3], "codec": [3, 3], "pretrain": [1] * 6}
    assert len(plan.jobs) == 16 and len(plan.runs) == 6


def test_stages_with_a_seed_of_their_own_are_trained_once_for_all_seeds():
    config = tiny_config(encoder__seed=0, codec__seed=0)
    plan = make_plan(sweep(config=config, seeds=(0, 1, 2)))
    shared = {id: runs for id, runs in plan.shared().items() if runs > 1}
    assert sorted(plan.jobs[id].label for id in shared) == ["codec", "encoder"]
    assert set(shared.values()) == {6} and len(plan.jobs) == 2 + 6 + 6


def test_seeds_that_no_stage_follows_are_refused():
    own = {f"{stage}__seed": 0 for stage in ("encoder", "codec", "pretrain")}
    with pytest.raises(ConfigError, match="the seeds 0 and 1 of the variant one train the same"):
        make_plan(sweep(config=tiny_config(**own), seeds=(0, 1)))


def test_jobs_come_after_those_that_they_need():
    plan = make_plan(load_sweep(SMOKE))
    order = list(plan.jobs)
    for job in plan.jobs.values():
        assert all(order.index(id) < order.index(job.id) for id in job.inputs.values())


def test_variants_that_sample_in_other_ways_share_all_stages():
    plan = make_plan(sweep(variants={"one": {}, "two": {"sample.guidance": 9.0}}))
    assert set(plan.shared().values()) == {2}
    first, second = (run.job.id for run in plan.runs)
    assert first != second


def test_jobs_of_two_seeds_are_alike_and_those_of_two_variants_are_not():
    plan = make_plan(sweep(seeds=(0, 1)))
    alike = {
        (run.variant, run.seed): plan.jobs[run.job.inputs["pretrain"]].alike for run in plan.runs
    }
    assert alike["one", 0] == alike["one", 1] != alike["two", 0]


def test_a_job_has_the_settings_of_its_own_stages_alone():
    config = tiny_config(stages=("codec", "sft"), sft__init_from="runs/base:pretrain")
    codec, sft = stage_jobs(config).values()
    assert codec.configuration().sft.init_from == "" and codec.config["stages"] == ["codec"]
    assert sft.configuration().sft.init_from == "runs/base:pretrain"


def test_shards_divide_the_runs_and_take_the_stages_along_that_they_need():
    plan = make_plan(load_sweep(SMOKE))
    shards = [plan.shard(index, 4) for index in range(4)]
    ids = [run.job.id for shard in shards for run in shard.runs]
    assert sorted(ids) == sorted(run.job.id for run in plan.runs)
    assert all(
        id in shard.jobs
        for shard in shards
        for job in shard.jobs.values()
        for id in job.inputs.values()
    )


def test_a_job_is_the_same_after_it_was_written(tmp_path):
    plan = make_plan(sweep())
    write_jobs(plan, tmp_path)
    for id, job in plan.jobs.items():
        found = read_job(tmp_path, id)
        assert found == job
        assert from_json(found.config).to_dict() == job.configuration().to_dict()


def test_two_variants_that_are_the_same_are_refused():
    with pytest.raises(ConfigError, match="the variants one and two are the same; change"):
        make_plan(sweep(variants={"one": {}, "two": {}}))


@pytest.mark.parametrize("key", ["data.threads", "sft.warmup_steps"])
def test_variants_that_differ_in_what_no_stage_reads_are_refused_with_the_key(key):
    message = f"one and two are the same, as no stage that they train depends on {key}; change"
    with pytest.raises(ConfigError, match=message):
        make_plan(sweep(variants={"one": {}, "two": {key: 5}}))


# ---- files ------------------------------------------------------------------------------------


def test_a_variant_may_be_a_function_that_changes_or_returns_a_configuration():
    def change(config):
        config.pretrain.steps = 3

    config = variant_config(sweep(variants={"one": change}), "one", 7)
    assert (config.pretrain.steps, config.seed) == (3, 7)
    given = sweep(variants={"one": lambda config: tiny_config(codec__steps=5)})
    assert variant_config(given, "one", 0).codec.steps == 5
    assert make_plan(given).runs[0].changes == {"codec.steps": 5}


SAID = Contrast("understanding/qa", better="one", worse="two")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"one": {"pretrain.step": 3}}}, "variant one: unknown key pretrain.step"),
        ({"variants": {"one": {"pretrain.steps": 0}}}, "variant one: .*steps.*at least 1"),
        ({"variants": {"a/b": {}}}, "variant 'a/b' names a folder"),
        ({"variants": {}}, "variants is empty"),
        ({"variants": {"one": {"seed": 3}}}, "variant 'one' sets the seed"),
        ({"seeds": (1, 1)}, "seeds has 1 twice"),
        ({"seeds": (0, 0.5)}, "seeds holds 0.5; each has to be a whole number"),
        ({"seeds": ([1],)}, r"seeds holds \[1\]"),
        ({"seeds": (-1,)}, "variant one: seed=-1: give at least 0"),
        ({"scores": (3,)}, "scores holds 3; each has to be a text"),
        ({"scores": ("understanding/qa",) * 2}, "scores has 'understanding/qa' twice"),
        ({"contrasts": SAID}, r"is a Contrast; give a tuple, such as \(Contrast"),
        ({"contrasts": ("one",)}, "contrasts holds 'one'; each has to be a Contrast"),
        ({"contrasts": (SAID, SAID)}, "contrasts has Contrast.* twice"),
        ({"minutes": 0}, "is no limit of time"),
        ({"minutes": float("inf")}, "is no limit of time"),
        ({"minutes": "5"}, "minutes='5' is a str; give a number of CPU minutes"),
        ({"seeds": 3}, "seeds=3 is a int; give a tuple of numbers"),
        ({"seeds": "01"}, "seeds='01' is a str"),
        ({"scores": "understanding/qa"}, "scores='understanding/qa' is a str; give a tuple"),
        ({"variants": ["a", "b"]}, "is a list; give a dict"),
        ({"variants": {1: {}}}, "variant 1 names a folder"),
        ({"variants": {"one": "pretrain.steps=2"}}, "variant 'one' is 'pretrain.steps=2'; give"),
        ({"variants": {"one": lambda config: 3}}, "variant one: its function returns int"),
        (
            {"variants": {"one": lambda config: 1 / 0}},
            r"variant one: .*test_plan.py, line \d+: ZeroDivisionError: division by zero",
        ),
        (
            {"variants": {"one": lambda config: setattr(config.pretrain, "stepz", 3)}},
            r"variant one: .*line \d+: unknown key pretrain.stepz: did you mean pretrain.steps",
        ),
        ({"split": "train"}, "choose development or test"),
        ({"scores": ("qa",)}, "score 'qa' is not understood"),
        ({"scores": ("pretrained:eval/loss",)}, "is not understood"),
        ({"contrasts": (Contrast("understanding/qa", "one", "three"),)}, "variant 'three'"),
        ({"contrasts": (Contrast("editing/success", "one", "two"),)}, "not in scores"),
        (
            {
                "contrasts": (
                    Contrast("understanding/qa", "one", "two"),
                    Contrast("understanding/qa", "two", "one", paper="+2"),
                )
            },
            "two contrasts compare 'one' and 'two' by 'understanding/qa', in both directions",
        ),
        (
            {
                "contrasts": (
                    Contrast("understanding/qa", "one", "two"),
                    Contrast("understanding/qa", "one", "two", paper="+2"),
                )
            },
            "by 'understanding/qa', in both directions or in the same one; remove one",
        ),
        (
            {"variants": {"one": lambda config: setattr(config, "seed", 3)}},
            "variant one: the function sets the seed; list seeds in seeds=",
        ),
        ({"contrasts": (Contrast("understanding/qa", "one", "one"),)}, "'one' with itself"),
        ({"scores": ("sft:eval/loss",)}, "no variant trains the stage sft; stages are encoder"),
        ({"scores": ("pretrain:eval/loss",)}, "is not measured; set pretrain.eval_every above 0"),
        ({"scores": ("understanding/qaa",)}, "'understanding/qaa': is no score of unicom evaluate"),
        (
            {"scores": ("editing/success",), "variants": {"one": {"evaluation.edits": 0}}},
            "'editing/success': has no samples; set evaluation.edits above 0",
        ),
        (
            {"config": tiny_config(stages=("encoder", "codec")), "variants": {"one": {}}},
            "'understanding/qa': needs a unified model, and no variant trains one",
        ),
        (
            {
                "config": tiny_config(stages=("encoder",)),
                "variants": {"one": {}},
                "scores": ("reconstruction/psnr",),
            },
            "'reconstruction/psnr': needs a codec or an autoencoder, and no variant trains one",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(tmp_path, changes, message, monkeypatch):
    path = tmp_path / "given.py"
    path.write_text("from tests.sweeps.test_plan import GIVEN\nget_sweep = lambda: GIVEN['it']\n")
    monkeypatch.setitem(GIVEN, "it", sweep(**changes))
    with pytest.raises(ConfigError, match=message):
        make_plan(load_sweep(str(path)))


GIVEN: dict[str, Sweep] = {}


def test_a_file_without_a_sweep_names_what_is_missing(tmp_path):
    path = tmp_path / "given.py"
    path.write_text("def get_sweep():\n    return 1\n")
    with pytest.raises(ConfigError, match="returns int"):
        load_sweep(str(path))
    path.write_text("x = 1 / 0\n")
    with pytest.raises(ConfigError, match="given.py, line 1: ZeroDivisionError"):
        load_sweep(str(path))
    with pytest.raises(ConfigError, match="no such file"):
        load_sweep(str(tmp_path / "other.py"))


def test_a_score_that_one_variant_has_is_accepted():
    own = {"pretrain.eval_every": 2}
    assert make_plan(sweep(variants={"a": {}, "b": own}, scores=("pretrain:eval/loss",)))


@pytest.mark.parametrize("stages", [("encoder", "codec"), ("autoencoder",)])
def test_reconstructions_are_scored_without_a_unified_model(stages):
    config, scores = tiny_config(stages=stages), ("reconstruction/psnr",)
    (run,) = make_plan(sweep(config=config, variants={"one": {}}, scores=scores)).runs
    assert tuple(run.job.inputs) == stages


def test_scores_of_described_and_redrawn_pictures_ask_for_their_suite():
    """`unicom evaluate` runs it on request alone."""
    plain, unified = (
        make_plan(sweep(scores=(score,))).runs[0].job
        for score in ("understanding/qa", "unified/caption_kept")
    )
    assert (plain.suites, unified.suites) == ("", "all")
    assert plain.id != unified.id and plain.inputs == unified.inputs


def test_without_contrasts_every_variant_is_compared_with_the_first():
    given = sweep(variants={"a": {}, "b": {}, "c": {}}, scores=("x/y", "x/z"))
    found = [(one.score, one.better, one.worse) for one in given.compared()]
    assert found == [("x/y", "b", "a"), ("x/y", "c", "a"), ("x/z", "b", "a"), ("x/z", "c", "a")]


def test_the_smoke_sweep_is_what_its_docstring_says():
    given = load_sweep(SMOKE)
    assert given.evaluates and len(given.variants) == 3 and len(given.seeds) == 2
    assert value_at(smoke.get_config(), "pretrain.steps") == 8


@pytest.mark.parametrize("path", sorted(Path("experiments/sweeps").glob("[a-z]*.py")), ids=str)
def test_every_sweep_that_ships_has_a_plan_most_of_whose_variants_share_a_stage(path):
    plan = make_plan(load_sweep(str(path)))
    assert 2 * max(plan.shared().values()) > len({run.variant for run in plan.runs})


def test_the_sweep_of_cheers_trains_encoder_and_autoencoder_once_for_all_but_the_uncompressed():
    plan = make_plan(load_sweep("experiments/sweeps/cheers.py"))
    runs = {(run.variant, run.seed): run.job.inputs for run in plan.runs}
    assert len(runs) == 4 * 3
    for seed in range(3):
        full = runs["full", seed]
        for variant in ("no_gate", "no_pixels"):
            own = runs[variant, seed]
            assert own["pretrain"] != full["pretrain"]
            assert own["encoder"] == full["encoder"] and own["autoencoder"] == full["autoencoder"]
        # Sides of pictures are multiples of the tokens in a slot, so the data count as others.
        assert runs["uncompressed", seed]["encoder"] != full["encoder"]
