"""`unicom compare`: runs that were made by hand, grouped by configuration, with their seeds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.sweeps.fake import write_hand_made
from tests.tiny import tiny_config
from unicom_jax.config import ConfigError, to_json
from unicom_jax.evaluation.scores import read_scores
from unicom_jax.runs.items import CheckpointError
from unicom_jax.sweeps.hand import (
    compare_groups,
    differing,
    group_runs,
    settings_of,
    steps_apart,
)
from unicom_jax.sweeps.spread import interval_over_items, spread_rows, spreads
from unicom_jax.sweeps.statistics import Outcomes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two configurations with three seeds each."""
    root = tmp_path_factory.mktemp("runs")
    found = []
    for name, rate, changes in (("a", 0.4, {}), ("b", 0.8, {"pretrain__steps": 9})):
        found += [
            write_hand_made(root / f"{name}{seed}", seed=seed, rate=rate, **changes)
            for seed in range(3)
        ]
    return found


def test_runs_that_differ_in_the_seed_alone_are_one_group(runs):
    groups = group_runs(runs)
    assert [(group.name, sorted(group.runs)) for group in groups] == [
        ("a0", [0, 1, 2]),
        ("b0", [0, 1, 2]),
    ]
    assert differing(groups) == {"pretrain.steps": [4, 9]}


def test_every_group_is_compared_with_the_first_in_all_scores(runs):
    found, measured = compare_groups(group_runs(runs))
    by_score = {one.contrast.score: one for one in found}
    answers = by_score["understanding/qa"]
    assert (answers.contrast.better, answers.contrast.worse) == ("b0", "a0")
    assert answers.verdict == "better" and answers.effect.pairs == 3
    assert set(by_score) == set(measured) >= {"generation/overall", "reconstruction/kid"}


def test_two_single_runs_are_compared_over_their_items(runs):
    found, _ = compare_groups(group_runs([runs[0], runs[3]]))
    answers = next(one for one in found if one.contrast.score == "understanding/qa")
    assert answers.effect.seeds is None and answers.verdict == "better"


def test_keys_that_change_no_result_do_not_part_a_group(runs, tmp_path):
    other = write_hand_made(tmp_path / "other", seed=7, rate=0.4, data__threads=5)
    assert len(group_runs([runs[0], other])) == 1


def test_settings_of_stages_that_are_not_trained_do_not_part_a_group(runs, tmp_path):
    alike = {"stages": ("encoder", "codec", "pretrain"), "seed": 7, "rate": 0.4}
    other = write_hand_made(tmp_path / "other", sft__learning_rate=0.5, **alike)
    first = write_hand_made(tmp_path / "first", **(alike | {"seed": 0}))
    assert len(group_runs([first, other])) == 1
    for name, key in (("trained", "pretrain__learning_rate"), ("part", "unified__z_loss")):
        changed = write_hand_made(tmp_path / name, **{key: 0.5}, **alike)
        assert len(group_runs([first, changed])) == 2


@pytest.mark.parametrize(
    "stages", [("encoder", "codec", "pretrain", "pretrain"), ("codec", "encoder", "pretrain")]
)
def test_runs_of_other_stages_are_no_seeds_of_one_configuration(tmp_path, stages):
    usual = {"rate": 0.4, "stages": ("encoder", "codec", "pretrain")}
    first = write_hand_made(tmp_path / "first", seed=0, **usual)
    other = write_hand_made(tmp_path / "other", seed=1, **(usual | {"stages": stages}))
    groups = group_runs([first, other])
    assert len(groups) == 2 and differing(groups) == {"stages": [usual["stages"], stages]}


def test_runs_that_start_from_runs_of_their_seeds_are_one_group(runs, tmp_path):
    def started(name: str, origin: Path, seed: int) -> Path:
        start = {"sft__init_from": f"{origin}:pretrain", "stages": ("sft",)}
        return write_hand_made(tmp_path / name, seed=seed, rate=0.4, **start)

    first, second = (started(f"s{seed}", runs[seed], seed) for seed in (0, 1))
    (group,) = group_runs([first, second])
    assert sorted(group.runs) == [0, 1]
    other = started("other", runs[4], 1)  # a run of seed 1, too, but with more steps
    assert [group.name for group in group_runs([first, other])] == ["s0", "other"]
    gone = started("gone", tmp_path / "nowhere", 1)
    assert len(group_runs([first, gone])) == 2


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda runs, new: [runs[0], new(seed=0)], "the same configuration and seed 0"),
        (
            lambda runs, new: [runs[0], new(seed=0, split="development", codec__steps=9)],
            "scored with split 'test'",
        ),
        (lambda runs, new: [runs[0], runs[0].parent], "holds no run"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_in_one_line(runs, tmp_path, choose, message):
    chosen = choose(runs, lambda **how: write_hand_made(tmp_path / "new", rate=0.4, **how))
    with pytest.raises(ConfigError, match=message):
        compare_groups(group_runs(chosen))


def test_seeds_of_one_configuration_have_a_mean_a_range_and_an_interval_over_items(runs):
    (group,) = group_runs(runs[:3])
    found = {one.score: one for one in spreads(group)}
    values = [read_scores(run / "scores.json")["understanding/qa"] for run in runs[:3]]
    answers = found["understanding/qa"]
    assert answers.mean == pytest.approx(sum(values) / 3) and min(values) < max(values)
    assert (answers.least, answers.most) == (min(values), max(values))
    assert answers.chance == 0.4 and answers.count == 120 and answers.untrained is None
    assert found["reconstruction/kid"].interval is None  # no mean over items
    row = next(row for row in spread_rows(list(found.values())) if row[0] == "understanding/qa")
    assert re.fullmatch(r"[\d.]+% to [\d.]+%", row[2]) and row[4:] == ("–", "40.0%", "120")


def test_the_interval_over_items_does_not_shrink_because_the_same_items_are_asked_again(tmp_path):
    # the same outcomes with two seeds
    for seed in (0, 1):
        run = write_hand_made(tmp_path / f"{seed}", seed=0, rate=0.4)
        run.joinpath("config.json").write_text(to_json(tiny_config(seed=seed)))
    (both,) = group_runs([tmp_path / "0", tmp_path / "1"])
    found = next(one for one in spreads(both) if one.score == "understanding/qa")
    alone = read_scores(tmp_path / "0" / "scores.json")
    ends = [alone[f"understanding/qa.{end}"] for end in ("low", "high")]
    assert found.interval[1:] == pytest.approx(ends, abs=0.003)


def test_seeds_that_were_scored_on_other_items_are_refused(runs, tmp_path):
    other = write_hand_made(tmp_path / "other", seed=7, rate=0.4)
    outcomes = other / "evaluation" / "outcomes.jsonl"
    outcomes.write_text(outcomes.read_text().replace("picture/7", "picture/77"))
    (group,) = group_runs([runs[0], other])
    with pytest.raises(ConfigError, match="scored on different items"):
        spreads(group)


def test_seeds_that_were_scored_on_other_numbers_of_samples_are_refused(runs, tmp_path):
    """Distances have no items that could tell."""
    other = write_hand_made(tmp_path / "other", seed=7, rate=0.4)
    path = other / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reconstruction/kid.n": 30}))
    (group,) = group_runs([runs[0], other])
    with pytest.raises(ConfigError, match="scored on different numbers of samples"):
        spreads(group)


def test_seeds_that_were_scored_after_other_steps_are_shown(tmp_path):
    for seed, step in ((0, 4), (1, 2)):
        path = write_hand_made(tmp_path / f"{seed}", seed=seed, rate=0.4) / "scores.json"
        found = json.loads(path.read_text())
        found["about"]["checkpoints"] = {"codec": "codec 1", "unified": f"pretrain {step}"}
        path.write_text(json.dumps(found))
    (group,) = group_runs([tmp_path / "0", tmp_path / "1"])
    assert steps_apart(group) == "seed 0 at codec 1, pretrain 4; seed 1 at codec 1, pretrain 2"
    assert steps_apart(group_runs([tmp_path / "0"])[0]) == ""


def scored_at(run: Path, step: int) -> Path:
    path = run / "scores.json"
    found = json.loads(path.read_text())
    found["about"]["checkpoints"] = {"unified": f"pretrain {step}"}
    path.write_text(json.dumps(found))
    return run


def test_groups_that_were_scored_after_other_steps_show_it(tmp_path):
    """The configurations say how long the runs train in all."""
    made = {"seed": 0, "rate": 0.4}
    first = scored_at(write_hand_made(tmp_path / "a", **made), 4)
    second = scored_at(write_hand_made(tmp_path / "b", codec__steps=9, **made), 2)
    assert differing(group_runs([first, second])) == {
        "codec.steps": [4, 9],
        "scored": ["pretrain 4", "pretrain 2"],
    }


def test_keys_of_stages_that_the_first_group_does_not_train_are_shown(tmp_path):
    longer = {"seed": 0, "rate": 0.4, "stages": ("encoder", "codec", "pretrain", "sft")}
    runs = [write_hand_made(tmp_path / "a", seed=0, rate=0.4)]
    runs += [
        write_hand_made(tmp_path / name, sft__learning_rate=rate, **longer)
        for name, rate in (("b", 0.5), ("c", 0.25))
    ]
    found = differing(group_runs(runs))
    assert found.keys() == {"stages", "sft.learning_rate"}
    assert found["sft.learning_rate"] == [None, 0.5, 0.25]


def test_runs_without_a_score_in_common_are_refused(runs, tmp_path):
    other = write_hand_made(tmp_path / "other", seed=0, rate=0.4, codec__steps=9)
    path = other / "scores.json"
    path.write_text(json.dumps({"about": json.loads(path.read_text())["about"]}))
    with pytest.raises(ConfigError, match="no score in common: .*a0 has understanding/qa, "):
        compare_groups(group_runs([runs[0], other]))


def test_a_score_that_is_no_number_for_one_seed_has_no_mean(tmp_path):
    for seed in (0, 1):
        path = write_hand_made(tmp_path / f"{seed}", seed=seed, rate=0.4) / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"understanding/qa": None}))
    rows = spread_rows(spreads(group_runs([tmp_path / "0", tmp_path / "1"])[0]))
    assert rows[0][:4] == ("understanding/qa", "–", "– to –", "–")
    assert len(rows) > 3


def test_marks_of_a_single_picture_have_no_interval():
    """Means of several pictures beside it are shown all the same."""
    measured = {seed: Outcomes(0.3, {"a what?": 0.3}, {"a what?": "a"}) for seed in (0, 1)}
    assert interval_over_items(measured) is None


def test_a_single_run_is_not_compared_with_itself(runs):
    with pytest.raises(ConfigError, match="is a single run; give others to compare it with"):
        spreads(group_runs(runs[:1])[0])


def test_a_run_of_another_version_is_refused_in_one_line(runs, tmp_path):
    other = write_hand_made(tmp_path / "other", seed=9, rate=0.4)
    (other / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="other/config.json lacks the key 'seed'"):
        settings_of(other)


def test_runs_that_start_from_each_other_do_not_hang(tmp_path):
    """A workdir can be trained anew after another one started from it."""
    names = [tmp_path / name for name in "ab"]
    for one, other in (names, names[::-1]):
        write_hand_made(one, seed=0, rate=0.4, pretrain__init_from=f"{other}:pretrain")
    assert settings_of(names[0])[0]["pretrain.init_from"].startswith("settings ")


def test_a_run_that_was_not_scored_says_how_to_score_it(runs, tmp_path):
    run = write_hand_made(tmp_path / "run", seed=0, rate=0.4)
    (run / "scores.json").unlink()
    with pytest.raises(ConfigError, match="run unicom evaluate --workdir="):
        group_runs([run])


def test_the_best_of_several_drawings_is_not_compared_with_the_only_one(runs, tmp_path):
    run = write_hand_made(tmp_path / "run", seed=0, rate=0.4, codec__steps=9)
    path = run / "scores.json"
    found = json.loads(path.read_text())
    found["about"]["best_of"] = 8
    path.write_text(json.dumps(found))
    with pytest.raises(ConfigError, match=r"scored with best_of 1, \S+ with 8; evaluate both"):
        group_runs([runs[0], run])
