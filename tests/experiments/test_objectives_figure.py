"""The plot of a score against CPU time, from the scores that `unicom evaluate` has written."""

from __future__ import annotations

import json

import pytest

from experiments import objectives_figure
from unicom_jax.evaluation.intervals import wilson
from unicom_jax.evaluation.scores import Score, flatten, write_scores


def evaluated(folder, step, correct, name="scores.json", stage="u4g"):
    """As `unicom evaluate --step` leaves it, with `correct` of 100 drawings."""
    flat = flatten([Score("generation/overall", wilson(correct, 100), 100)])
    write_scores(folder / name, flat, {"checkpoints": {"unified": f"{stage} {step}"}})


def trained(folder, steps=40):
    (folder / "u4g").mkdir(parents=True)
    (folder / "u4g/stage.json").write_text(json.dumps({"stage": "u4g", "steps": steps}))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two runs of 40 steps from one start, scored at several steps."""
    before, nft, grpo = (trained(tmp_path / name) for name in ("before", "nft", "grpo"))
    evaluated(before, 1, 60)
    for step, correct in ((10, 61), (40, 84)):
        evaluated(nft, step, correct, f"scores-{step}.json")
    evaluated(nft, 40, 84)  # the last evaluation, of which there is a copy
    evaluated(grpo, 40, 64)
    return tmp_path


def draw(runs, *flags, figure="out.svg"):
    objectives_figure.main(
        [f"--run=NFT,{runs}/nft,100", f"--figure={runs / figure}", *flags],
    )


def test_a_step_has_its_share_of_the_time_after_the_start(runs, capsys):
    draw(runs, f"--run=GRPO,{runs}/grpo,140,{runs}/before", "--start=20")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| NFT | 1 | 10 | 0.7 | 61.0% (51–70) |",  # 20 s and a quarter of 80 s
        "| NFT | 1 | 40 | 1.7 | 84.0% (76–90) |",
        "| GRPO | 1 | 0 | 0.0 | 60.0% (50–69) |",
        "| GRPO | 1 | 40 | 2.3 | 64.0% (54–73) |",
    ]


@pytest.fixture
def seeds(runs):
    """Another seed of the first run, scored at the same steps."""
    second = trained(runs / "second")
    for step, correct in ((10, 71), (40, 82)):
        evaluated(second, step, correct, f"scores-{step}.json")
    return runs


def test_runs_of_one_name_are_a_mean_with_their_range(seeds, capsys):
    draw(seeds, f"--run=NFT,{seeds}/second,124")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| NFT | 2 | 10 | 0.7 | 66.0% (61–71) |",
        "| NFT | 2 | 40 | 1.9 | 83.0% (82–84) |",  # (100 s + 124 s) / 2
    ]
    assert "<!-- NFT, 2 seeds -->" in (seeds / "out.svg").read_text()


def test_seeds_that_were_scored_at_different_steps_are_refused(seeds):
    evaluated(seeds / "second", 20, 75, "scores-20.json")
    with pytest.raises(SystemExit, match="NFT have scores at steps 10, 20, 40 and at 10, 40;"):
        draw(seeds, f"--run=NFT,{seeds}/second,124")


def test_each_name_is_a_line(runs):
    draw(runs, f"--run=GRPO,{runs}/grpo,140")
    drawn = (runs / "out.svg").read_text()
    for text in ("NFT", "GRPO", "CPU minutes", "Scenes-GenEval (%)"):
        assert f"<!-- {text} -->" in drawn


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run=GRPO,{runs}/none,9"], "--start=20"),
        (["--run=GRPO,{runs}/none,99"], "none has no scores.json; run unicom evaluate --workdir="),
        (["--score=unified/agreement"], "has no score unified/agreement"),
        (["--score=generation/overall.n"], "has no score generation/overall.n"),
        (["--run=GRPO,{runs}/grpo,99,{runs}/none"], "No such file"),
        (["--figure=out.xyz"], "--figure=out.xyz: Format 'xyz' is not supported"),
    ],
)
def test_what_is_missing_ends_in_one_line(runs, flags, message):
    with pytest.raises(SystemExit) as ended:
        draw(runs, *(flag.format(runs=runs) for flag in flags))
    assert message in str(ended.value.code) and "\n" not in str(ended.value.code)


def test_scores_of_two_stages_are_not_one_line(runs):
    (runs / "nft/sft").mkdir()
    (runs / "nft/sft/stage.json").write_text(json.dumps({"stage": "sft", "steps": 40}))
    evaluated(runs / "nft", 20, 50, "scores-sft.json", stage="sft")
    with pytest.raises(SystemExit, match=r"nft has scores of several stages \(sft, u4g\)"):
        draw(runs)


@pytest.mark.parametrize("rest", ["", ",fast", ",99,before,more"])
def test_a_run_of_other_parts_is_refused(runs, capsys, rest):
    with pytest.raises(SystemExit):
        draw(runs, f"--run=GRPO,{runs}/grpo{rest}")
    assert f"grpo{rest} is not NAME,WORKDIR,SECONDS or" in capsys.readouterr().err


def test_scores_of_a_run_that_has_not_ended_are_not_placed(runs):
    (runs / "nft/u4g/stage.json").unlink()
    with pytest.raises(SystemExit, match="stage.json"):
        draw(runs)
