"""The table of a sweep, its comparisons and report; `unicom compare`."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from rich.console import Console

from tests.evaluation.test_report import Balance
from tests.sweeps.fake import (
    SCORES,
    fake_sweep,
    plan_without_scores,
    train_anew,
    write_fake_sweep,
    write_scored,
)
from unicom_jax.config import ConfigError
from unicom_jax.evaluation.intervals import mean_interval
from unicom_jax.evaluation.records import Redrawing, write_records
from unicom_jax.evaluation.scores import Score, flatten, read_scores, write_scores
from unicom_jax.rl.joint import OF_DRAWINGS
from unicom_jax.sweeps.command import print_comparisons
from unicom_jax.sweeps.compare import (
    HEADINGS,
    SAME,
    compare,
    compare_sweep,
    latex,
    markdown,
    measured_of,
    row_of,
)
from unicom_jax.sweeps.items import is_higher_better, outcomes_of
from unicom_jax.sweeps.outcomes import FAILED, path_of, read_outcome, write_outcome
from unicom_jax.sweeps.outdated import facts_of
from unicom_jax.sweeps.plan import make_plan
from unicom_jax.sweeps.report import write_report
from unicom_jax.sweeps.results import COLUMNS, rows_of, write_table
from unicom_jax.sweeps.runner import finished, reasons
from unicom_jax.sweeps.statistics import UNDECIDED, Outcomes, effect_of
from unicom_jax.sweeps.sweep import Contrast


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sweep")
    return (*write_fake_sweep(workdir), workdir)


# ---- items ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "score",
    ["understanding/qa", "generation/overall", "generation/single", "generation/two"],
)
def test_a_score_is_the_sum_of_what_its_items_contribute(tmp_path, score):
    write_scored(tmp_path, seed=0, rate=0.7)
    found = outcomes_of(tmp_path, score)
    assert found.value == read_scores(tmp_path / "scores.json")[score]
    assert sum(found.items.values()) == pytest.approx(found.value) and len(found.items) > 3


@pytest.mark.parametrize("name", ["cosine", "agreement", "caption_kept", "caption_invented"])
def test_a_score_of_redrawings_is_a_mean_over_pictures(tmp_path, name):
    marks = [0.25, 0.5, 1.0, 0.75]
    rows = [
        Redrawing(f"p/{i}", None, "a", None, "b", None, m, m, m, m) for i, m in enumerate(marks)
    ]
    write_records(tmp_path / "evaluation", {"unified": rows})
    score = Score(f"unified/{name}", mean_interval(marks), len(marks))
    write_scores(tmp_path / "scores.json", flatten([score]))
    found = outcomes_of(tmp_path, score.name)
    assert sum(found.items.values()) == pytest.approx(found.value) and len(found.items) == 4


def test_outcomes_of_another_evaluation_are_refused(tmp_path):
    """The interval over items would be that of other answers."""
    write_scored(tmp_path, seed=0, rate=0.7)
    rewrite(tmp_path, {}, {"understanding/qa": 0.1})
    with pytest.raises(ValueError, match=r"outcomes.jsonl gives understanding/qa 0\.\d+, .* 0.1; "):
        outcomes_of(tmp_path, "understanding/qa")


def test_a_run_whose_score_is_no_number_is_not_left_out(tmp_path):
    """The mean of the other seeds would be that of the runs that went well."""
    for seed in (0, 1):
        write_scored(tmp_path / str(seed), seed=seed, rate=0.7)
    rewrite(tmp_path / "1", {}, {"understanding/qa": None})
    found = {seed: outcomes_of(tmp_path / str(seed), "understanding/qa") for seed in (0, 1)}
    other = {seed: replace(found[0], value=0.5) for seed in (0, 1)}
    (one,) = compare([CONTRAST], {CONTRAST.score: {"wide": found, "narrow": other}})
    assert one.effect is None and one.why == "of seed 1, the scores are nan and 0.5"


def test_questions_about_one_picture_are_one_cluster(tmp_path):
    write_scored(tmp_path, seed=0, rate=0.7)
    found = outcomes_of(tmp_path, "understanding/qa")
    assert len(found.items) == 120 and len(set(found.clusters.values())) == 60


def test_a_distance_of_distributions_has_a_value_and_no_items(tmp_path):
    write_scored(tmp_path, seed=0, rate=0.7)
    found = outcomes_of(tmp_path, "reconstruction/kid")
    assert found.value == pytest.approx(0.07) and not found.items
    assert outcomes_of(tmp_path, "editing/success") is None


def rewrite(run, about, scores):
    """Changes facts and numbers of a run's scores."""
    path = run / "scores.json"
    found = json.loads(path.read_text())
    found["about"] |= about
    path.write_text(json.dumps(found | scores))


CONTRAST = Contrast("understanding/qa", better="wide", worse="narrow")
RETRIEVAL = {f"generation/retrieval{end}": 0.5 for end in ("", ".low", ".high")}


@pytest.mark.parametrize(
    ("score", "about", "n", "why"),
    [
        ("generation/retrieval", {}, 50, "scored on different numbers of samples"),
        ("generation/retrieval", {"measured_by": "b"}, 60, "measured by different encoders"),
        ("reconstruction/kid", {"measured_by": "b"}, 60, "measured by different encoders"),
        ("reconstruction/kid", {"pictures": "b"}, 60, "scored on different pictures"),
        ("understanding/qa", {"pictures": "b"}, 60, "scored on different pictures"),
        ("understanding/qa", {"answer_rule": "vqa"}, 60, "scored by different rules for answers"),
    ],
)
def test_values_of_other_samples_pictures_or_encoders_are_not_subtracted(
    tmp_path, score, about, n, why
):
    for name, facts, count in (("one", {}, 60), ("other", about, n)):
        write_scored(tmp_path / name, seed=0, rate=0.7)
        known = {"measured_by": "a", "pictures": "a"}
        rewrite(tmp_path / name, known | facts, RETRIEVAL | {"generation/retrieval.n": count})
    one, other = ({0: outcomes_of(tmp_path / name, score)} for name in ("one", "other"))
    with pytest.raises(ValueError, match=f"the runs were {why}"):
        effect_of(one, other)


def test_prompts_can_be_compared_whatever_the_pictures_and_the_encoder_are(tmp_path):
    for name in "ab":
        write_scored(tmp_path / name, seed=0, rate=0.7)
        rewrite(tmp_path / name, {"measured_by": name, "pictures": name}, {})
    one, other = ({0: outcomes_of(tmp_path / name, "generation/overall")} for name in "ab")
    assert effect_of(one, other).interval.value == 0


def test_a_held_out_metric_is_that_of_the_last_evaluation(tmp_path):
    write_scored(tmp_path, seed=0, rate=0.7, loss=1.0)
    assert outcomes_of(tmp_path, "pretrain:eval/loss").value == 2.0
    assert outcomes_of(tmp_path, "pretrain:eval/text") is None


# ---- the table --------------------------------------------------------------------------------


def test_the_table_has_every_metric_of_every_evaluation_with_what_it_cost(done):
    _, plan, workdir = done
    rows = [r for r in rows_of(plan, workdir) if (r["variant"], r["seed"]) == ("wide", 1)]
    curve = [r for r in rows if r["metric"] == "eval/loss"]
    assert [(r["stage"], r["step"], r["value"]) for r in curve] == [
        ("pretrain", 2, pytest.approx(3.01)),
        ("pretrain", 4, pytest.approx(2.01)),
    ]
    # two stages of four steps before, at 5e6 operations and 2.5 CPU seconds a step
    assert [r["flops"] for r in curve] == [5e6 * 10, 5e6 * 12]
    assert [r["cpu_seconds"] for r in curve] == [25.0, 30.0]
    assert [r["tokens"] for r in curve] == [200.0, 400.0]
    score = next(r for r in rows if r["metric"] == "understanding/qa")
    assert (score["stage"], score["n"], score["flops"], score["commit"]) == ("", 120, 6e7, "abc")
    assert (score["tokens"], score["cpu_seconds"], score["device_seconds"]) == (400.0, 30.0, None)
    assert score["low"] < score["value"] < score["high"]
    assert json.loads(score["overrides"]) == {"unified.transformer.width": 64}


def test_time_on_an_accelerator_is_in_the_table_and_on_the_axis_of_the_curves(tmp_path):
    sweep, plan = write_fake_sweep(tmp_path)
    for id in plan.jobs:
        if before := read_outcome(tmp_path, id):
            write_outcome(tmp_path, id, **before, device_seconds=8.0)
    rows = [r for r in rows_of(plan, tmp_path) if (r["variant"], r["seed"]) == ("wide", 1)]
    curve = [r["device_seconds"] for r in rows if r["metric"] == "eval/loss"]
    assert curve == [8.0 + 8.0 + 4.0, 24.0]
    assert next(r for r in rows if r["metric"] == "understanding/qa")["device_seconds"] == 24.0
    page = write_report(sweep, plan, tmp_path).read_text(encoding="utf-8")
    assert "over device seconds" in page and "over CPU seconds" not in page


def test_a_run_without_a_result_is_one_row_with_its_reason(done):
    _, plan, workdir = done
    rows = [row for row in rows_of(plan, workdir) if row["variant"] == "broken"]
    assert [row["status"] for row in rows] == ["failed", "failed", "unfinished"]
    assert re.fullmatch(r"stage pretrain-\w+: no", rows[0]["reason"])
    assert rows[0]["metric"] is None


@pytest.mark.parametrize("state", ["removed", "failed"])
def test_a_run_counts_again_when_a_stage_whose_outcome_was_lost_is_done_again(tmp_path, state):
    sweep, plan = write_fake_sweep(tmp_path)
    run = next(run for run in plan.runs if run.variant == "wide")
    stage = plan.needed(run)[-1].id
    if state == "failed":
        write_outcome(tmp_path, stage, status=FAILED, reason="its node is gone")
    else:
        path_of(tmp_path, stage).unlink()
    rows = [r for r in rows_of(plan, tmp_path) if (r["variant"], r["seed"]) == ("wide", run.seed)]
    assert [row["status"] for row in rows] == [FAILED if state == "failed" else "unfinished"]
    assert run.seed not in measured_of(plan, tmp_path, sweep.scores)["understanding/qa"]["wide"]


def test_a_run_does_not_count_after_one_of_its_stages_was_trained_anew(tmp_path):
    sweep, plan = write_fake_sweep(tmp_path)
    run = next(run for run in plan.runs if run.variant == "wide")
    stage = train_anew(tmp_path, plan, run.job)
    measured = measured_of(plan, tmp_path, sweep.scores)["understanding/qa"]["wide"]
    assert run.job.id not in finished(plan, tmp_path) and run.seed not in measured
    why = reasons(plan, tmp_path)[run.job.id]
    assert f"runs/{run.job.id} holds an earlier training of {stage}" in why
    assert f"remove it and {path_of(Path(), run.job.id)} from the sweep's folder" in why


def test_a_run_counts_if_a_stage_ended_later_but_is_the_same_training(tmp_path):
    _, plan = write_fake_sweep(tmp_path)
    run = plan.runs[0].job
    train_anew(tmp_path, plan, run)
    label = list(run.inputs)[-1]
    given, trained = facts_of(tmp_path, run, label)
    given.write_bytes(trained.read_bytes())
    assert run.id in finished(plan, tmp_path)


def test_a_finished_run_without_its_scores_is_named_with_the_way_to_score_it(tmp_path):
    _, plan = write_fake_sweep(tmp_path)
    run = plan.runs[0].job
    (run.folder(tmp_path) / "scores.json").unlink()
    message = f"scores.json is missing, .* remove .*outcomes/{run.id}.json and run the sweep again"
    with pytest.raises(ConfigError, match=message):
        rows_of(plan, tmp_path)


def test_both_files_hold_the_same_table(done, tmp_path):
    _, plan, workdir = done
    rows = rows_of(plan, workdir)
    parquet, text = write_table(rows, tmp_path)
    assert pyarrow.parquet.read_table(parquet).to_pylist() == rows
    with text.open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert list(listed[0]) == list(COLUMNS)
    assert [row["value"] for row in listed] == [
        "" if row["value"] is None else str(row["value"]) for row in rows
    ]


def test_a_sweep_without_scores_needs_no_evaluation():
    sweep, plan = plan_without_scores()
    assert not sweep.evaluates
    assert {run.job.split for run in plan.runs} == {""}


# ---- comparisons ------------------------------------------------------------------------------


def test_a_clear_effect_has_the_sign_of_the_claim(done):
    sweep, plan, workdir = done
    answers, loss, broken = compare_sweep(sweep, plan, workdir)
    assert answers.verdict == SAME and answers.effect.pairs == 3 and answers.effect.count == 120
    assert answers.effect.interval.value == pytest.approx(0.4, abs=0.1)
    assert loss.verdict == SAME and loss.effect.interval.value == pytest.approx(-0.5)
    assert broken.verdict == UNDECIDED and broken.why == "no result of broken"
    assert math.isnan(broken.p)


def test_a_score_that_finished_runs_lack_is_no_missing_result(done):
    """A misspelt kind of questions, for example, which no check before training can know."""
    sweep, plan, workdir = done
    score = "understanding/qa/kolour"
    given = replace(sweep, scores=(score,), contrasts=(Contrast(score, "wide", "broken"),))
    (one,) = compare_sweep(given, plan, workdir)
    assert one.why == "finished runs of wide have no such score"


def test_a_sign_against_the_claim_is_called_opposite(done):
    sweep, plan, workdir = done
    turned = [replace(c, better=c.worse, worse=c.better) for c in sweep.contrasts[:2]]
    found = compare_sweep(replace(sweep, contrasts=turned), plan, workdir)
    assert [one.verdict for one in found] == ["opposite sign"] * 2


@pytest.mark.parametrize(
    ("score", "higher"),
    [
        ("pretrain:eval/loss", False),
        ("pretrain:eval/text/text_to_image", False),
        ("pretrain:eval/text_accuracy", True),
        ("pretrain:eval/text_accuracy/visual_qa", True),
        ("pretrain:eval/text_accuracy/source/photos", True),
        ("encoder:eval/retrieval", True),
        ("g4u:eval/reward", True),
        ("g4u:eval/reward/facts", True),
        (f"jointly:eval/{OF_DRAWINGS}reward", True),
        ("u4g:eval/kl", False),
    ],
)
def test_more_of_a_share_or_of_a_reward_is_better_and_less_of_a_loss(score, higher):
    assert is_higher_better(score) is higher


def test_means_beside_a_difference_are_over_the_seeds_that_both_variants_have():
    measured = {
        "wide": {0: Outcomes(3.0), 1: Outcomes(4.0)},
        "narrow": {0: Outcomes(1.0), 1: Outcomes(1.5), 2: Outcomes(9.0)},
    }
    contrast = Contrast("pretrain:eval/loss", better="wide", worse="narrow")
    (found,) = compare([contrast], {contrast.score: measured})
    assert row_of(found, measured)[1:4] == ("wide 3.5", "narrow 1.25", "+2.25")


def test_comparisons_are_printed_with_what_failed(done):
    sweep, plan, workdir = done
    printed = io.StringIO()
    console = Console(file=printed, width=200)
    print_comparisons(compare_sweep(sweep, plan, workdir), sweep, plan, workdir, console)
    text = printed.getvalue()
    assert "same sign as the claim" in text and "3 seeds × 120" in text
    assert "broken-seed0" in text and "no result of broken" in text


def test_tables_in_markdown_and_latex_have_the_same_cells(done):
    sweep, plan, workdir = done
    measured = measured_of(plan, workdir, sweep.scores)
    found = compare_sweep(sweep, plan, workdir)
    rows = [row_of(one, measured[one.contrast.score]) for one in found]
    lines = markdown(HEADINGS, rows).splitlines()
    assert len(lines) == 5 and all(line.count("|") == len(HEADINGS) + 1 for line in lines)
    tex = latex(HEADINGS, rows)
    assert r"3 seeds $\times$ 120" in tex and r"\%" in tex and "%" not in tex.replace(r"\%", "")
    assert tex.count("\\\\\n") == 4 and tex.startswith(r"\begin{tabular}{llllllll}")


def test_signs_that_mean_something_to_latex_are_escaped():
    """Groups of `unicom compare` have the names of folders."""
    written = latex(("a_b",), [("{50%}~x^2 & #1 $\\",)])
    assert r"a\_b \\" in written
    escaped = r"\{50\%\}\textasciitilde{}x\textasciicircum{}2 \& \#1 \$\textbackslash{} \\"
    assert escaped in written.splitlines()


# ---- the report -------------------------------------------------------------------------------


def test_the_report_is_one_file_with_claim_verdicts_curves_and_failures(done):
    sweep, plan, workdir = done
    page = write_report(sweep, plan, workdir).read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(page)
    assert balance.wrong == balance.open == []
    assert "<script" not in page and "url(" not in page and "src=" not in page
    assert sweep.claim in page and "same sign as the claim" in page and "+3 points" in page
    assert page.count('class="trouble"') == 2 and "adjusted for 2 comparisons" in page
    assert all(score in page.replace("<wbr>", "") for score in SCORES)
    for words in ("over steps", "over operations", "over CPU seconds"):
        assert page.count(words) >= 2
    assert 'path class="v0"' in page and 'path class="v1"' in page
    assert "unified.transformer.width=64" in page


def test_the_report_of_a_sweep_that_began_says_that_no_run_is_done(tmp_path):
    sweep = fake_sweep()
    page = write_report(sweep, make_plan(sweep), tmp_path).read_text(encoding="utf-8")
    assert "0 of 9" in page and "No run is done yet." in page
    assert "eval_every" not in page and "adjusted for" not in page
