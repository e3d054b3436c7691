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
    draw(runs, f"--run=GRPO,{runs}/grpo,140", f"--before={runs}/before", "--start=20")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| NFT | 0 | 0.0 | 60.0% (50–69) |",
        "| NFT | 10 | 0.7 | 61.0% (51–70) |",  # 20 s and a quarter of 80 s
        "| NFT | 40 | 1.7 | 84.0% (76–90) |",
        "| GRPO | 0 | 0.0 | 60.0% (50–69) |",
        "| GRPO | 40 | 2.3 | 64.0% (54–73) |",
    ]


def test_each_run_is_a_line_with_its_name(runs):
    draw(runs, f"--run=GRPO,{runs}/grpo,140")
    drawn = (runs / "out.svg").read_text()
    assert "<!-- NFT -->" in drawn and "<!-- GRPO -->" in drawn and "<!-- CPU minutes -->" in drawn


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--run=GRPO,{runs}/none,9"], "--start=20"),
        (["--run=GRPO,{runs}/none,99"], "none has no scores.json; run unicom evaluate --workdir="),
        (["--score=unified/agreement"], "has no score unified/agreement"),
        (["--score=generation/overall.n"], "has no score generation/overall.n"),
        (["--before={runs}/none"], "No such file"),
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


def test_a_run_without_its_cpu_time_is_refused(runs, capsys):
    with pytest.raises(SystemExit):
        draw(runs, f"--run=GRPO,{runs}/grpo")
    assert "grpo is not NAME,WORKDIR,SECONDS" in capsys.readouterr().err


def test_scores_of_a_run_that_has_not_ended_are_not_placed(runs):
    (runs / "nft/u4g/stage.json").unlink()
    with pytest.raises(SystemExit, match="stage.json"):
        draw(runs)
