"""The report: one file, complete with everything, honest with nothing."""

from __future__ import annotations

import html.parser
import json
import re

import pytest

from tests.evaluation.helpers import fake_about, square, write_fake_run
from unicom_jax.evaluation import charts, gate
from unicom_jax.evaluation.charts import Series, bar_chart, line_chart, short_number
from unicom_jax.evaluation.records import Details, write_records
from unicom_jax.evaluation.report import about_lines, duration, write_report
from unicom_jax.evaluation.report_inputs import read_run

SECTIONS = (
    "trained",
    "scores",
    "curves",
    "reconstructions",
    "generations",
    "edits",
    "answers",
    "codec",
    "speed",
)
VOID = {"meta", "img", "br", "wbr", "line", "circle", "path", "rect"}


class Balance(html.parser.HTMLParser):
    """Notes tags that are closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_fake_run(tmp_path_factory.mktemp("runs") / "quickstart")


@pytest.fixture(scope="module")
def page(workdir):
    return write_report(workdir).read_text(encoding="utf-8")


def test_the_report_is_one_file_that_asks_for_nothing_else(page):
    sources = re.findall(r'(?:src|href)="([^"]{0,24})', page)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "url(" not in page
    assert "<script" not in page


def test_the_markup_is_well_formed(page):
    balance = Balance()
    balance.feed(page)
    assert balance.wrong == balance.open == []


def test_every_section_is_there_and_filled(page):
    for section in SECTIONS:
        assert f'<section id="{section}">' in page
    assert 'class="missing"' not in page


def test_parameters_steps_and_time_are_shown(page):
    for fact in (
        "8.79M",
        "4,870,144",
        "2 min 06 s",
        "1 x cpu (cpu)",
        "frozen: encoder 1.2M, compressor 328",
    ):
        assert fact in page


def test_a_part_that_two_stages_train_counts_once(tmp_path):
    for name, parts in {"codec": {"head": 5}, "pretrain": {"body": 7}, "sft": {"body": 7}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "stage.json").write_text(json.dumps({"parameters": parts}))
    assert "<b>12</b> parameters" in write_report(tmp_path).read_text(encoding="utf-8")


def test_scores_show_interval_untrained_and_chance(page):
    row = page[page.index("QA · count") :].split("</tr>")[0]
    for text in ("69.8%", "54.9% – 81.4%", "42.0%", 'class="chance" style="left:42.00%"'):
        assert text in row


def test_prompts_and_answers_are_escaped(page):
    assert "&lt;two&gt;" in page
    assert "<two>" not in page


def test_stages_stand_in_the_order_of_training(workdir):
    assert [stage.name for stage in read_run(workdir).stages] == ["encoder", "codec", "unified"]


def test_held_out_losses_share_the_chart_of_the_training_loss(page):
    card = page[page.index("<figcaption>loss/text") :].split("</figure>")[0]
    assert 'class="train"' in card
    assert 'class="eval"' in card


def test_an_empty_folder_gives_a_line_a_section(tmp_path):
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for section in SECTIONS:
        body = page.split(f'<section id="{section}">')[1].split("</section>")[0]
        assert 'class="missing"' in body, section


def test_only_metrics_give_curves_and_say_what_is_missing(tmp_path):
    (tmp_path / "codec").mkdir()
    rows = [{"step": s, "time": 0.5 * s, "loss": 1 / s} for s in (1, 2, 3)]
    (tmp_path / "codec" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<h3>codec</h3>" in page
    assert "No scores yet" in page
    assert "1.5 s" in page


def test_an_unfinished_last_line_of_metrics_is_skipped(tmp_path):
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [row["step"] for row in read_run(tmp_path).stages[0].train] == [1]


def test_a_broken_line_of_metrics_is_named(tmp_path):
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "metrics.jsonl").write_text('{"step": \n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: not valid JSON"):
        write_report(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        write_report(tmp_path / "nowhere")


def test_a_missing_picture_is_named(tmp_path):
    workdir = write_fake_run(tmp_path / "run")
    (workdir / "evaluation" / "edits" / "0000_target.png").unlink()
    with pytest.raises(ValueError, match=r"0000_target\.png: unreadable picture"):
        write_report(workdir)


def test_nested_stages_are_found(tmp_path):
    for name in ("unified/sft", "unified/align", "encoder"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "stage.json").write_text('{"steps": 3}')
    names = [stage.name for stage in read_run(tmp_path).stages]
    assert names == ["encoder", "unified/align", "unified/sft"]


def test_a_chart_leaves_out_what_is_not_finite():
    svg = line_chart([Series([1, 2, 3], [1.0, float("nan"), 2.0])], "loss")
    assert "nan" not in svg
    assert line_chart([Series([1], [float("inf")])], "loss") == ""


def write_metrics(folder, rows):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_diverged_run_gets_a_page_that_says_so(tmp_path):
    nan = float("nan")
    rows = [
        {"step": step, "time": 0.1 * step, "loss": loss, "loss/flow": loss, "gradient_norm": loss}
        for step, loss in ((10, 2.0), (20, nan), (30, 1.5), (40, nan), (50, float("inf")))
    ]
    rows.append({"step": 50, "eval/loss": nan, "eval/flow": nan})
    write_metrics(tmp_path / "pretrain", rows)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    said = page[page.index('class="trouble"') :].split("</p>")[0]
    assert "<b>pretrain</b> diverged" in said
    assert "gradient_norm is not a finite number from step 40 to its last, 50" in said
    assert "<h3>pretrain</h3>" in page


def test_a_run_that_only_knows_not_a_number_gets_a_page(tmp_path):
    rows = [{"step": 1, "time": float("nan"), "loss": float("nan"), "tokens_per_second": None}]
    write_metrics(tmp_path / "codec", rows)
    facts = {"latent_std": [float("nan")], "latent_mean": [float("nan")], "seconds": None}
    (tmp_path / "codec" / "stage.json").write_text(json.dumps(facts))
    assert "<b>codec</b> diverged" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_stage_that_skipped_to_its_end_diverged(tmp_path):
    rows = [{"step": 5, "loss": 1.0, "skipped_in_a_row": s} for s in (0, 5)]
    write_metrics(tmp_path / "sft", rows)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<b>sft</b> diverged: its last 5 steps up to 5 were skipped, for their" in page


def test_a_stage_without_an_end_says_how_far_it_came(tmp_path):
    write_metrics(tmp_path / "sft", [{"step": 5, "loss": 1.0}])
    (tmp_path / "config.json").write_text(json.dumps({"sft": {"steps": 80}}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<b>sft</b> has not ended: its last logged step is 5 of 80" in page


def test_a_finished_stage_whose_last_step_was_skipped_did_not_diverge(tmp_path):
    rows = [{"step": s, "loss": 1.0, "gradient_norm": float("nan")} for s in (8, 9)]
    write_metrics(tmp_path / "sft", [{"step": 7, "loss": 1.0, "gradient_norm": 1.0}, rows[1]])
    (tmp_path / "sft" / "stage.json").write_text('{"steps": 9}')
    assert 'class="trouble"' not in write_report(tmp_path).read_text(encoding="utf-8")
    (tmp_path / "sft" / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "diverged: gradient_norm" in write_report(tmp_path).read_text(encoding="utf-8")


def test_stages_that_ended_well_are_not_remarked_on(page):
    assert 'class="trouble"' not in page


def test_how_the_scores_were_made_is_said(page):
    for fact in ("test split of scenes", "20 euler steps, guidance 3", "unified from pretrain 600"):
        assert fact in page
    assert "rule “exact”" in page


def test_a_policy_of_many_shapes_that_was_scored_on_squares_says_so():
    said = " ".join(about_lines({**fake_about(), "policy": "bucket"}))
    assert "policy is bucket, but the pictures are square" in said
    shapes = {"32 x 64": 3, "32 x 32": 1}
    wide = " ".join(about_lines({**fake_about(), "policy": "bucket", "shapes": shapes}))
    assert "square" not in wide and "32 x 64 (3), 32 x 32 (1)" in wide


def test_scores_of_an_older_version_are_shown_without_how_they_were_made(tmp_path):
    old = {"understanding/qa": 0.5, "understanding/qa.n": 4, "understanding/qa.untrained": 0.1}
    (tmp_path / "scores.json").write_text(json.dumps(old))
    assert "50.0%" in write_report(tmp_path).read_text(encoding="utf-8")


def test_the_page_of_an_earlier_report_stays_when_a_new_one_fails(tmp_path):
    workdir = write_fake_run(tmp_path / "run")
    before = write_report(workdir).read_bytes()
    (workdir / "scores.json").write_text("{")
    with pytest.raises(ValueError, match=r"scores\.json is not JSON"):
        write_report(workdir)
    assert (workdir / "report.html").read_bytes() == before


@pytest.mark.parametrize("key", ["loss/text_accuracy", "loss/retrieval", "data_wait"])
def test_rates_have_a_linear_axis_from_0_to_1(tmp_path, key):
    rows = [{"step": s, key: value} for s, value in ((1, 0.001), (2, 0.1), (3, 0.4))]
    write_metrics(tmp_path / "encoder", rows)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    chart = page[page.index('<svg class="chart"') :].split("</svg>")[0]
    ticks = re.findall(r'class="tick end" x="38"[^>]*>([^<]*)<', chart)
    assert (ticks[0], ticks[-1]) == ("0", "1")
    assert "logarithmic" not in chart


def test_what_is_not_finite_has_a_short_name():
    assert [short_number(float(x)) for x in ("nan", "inf", "-inf")] == ["NaN", "∞", "−∞"]


def test_a_wide_range_is_drawn_logarithmically():
    assert "(logarithmic)" in line_chart([Series([1, 2, 3], [100.0, 1.0, 0.1])], "loss")
    assert "(logarithmic)" not in line_chart([Series([1, 2, 3], [3.0, 2.0, 1.0])], "loss")


def test_a_chart_stays_inside_its_box():
    svg = line_chart([Series(range(1000), [(-1) ** i * 7.3 for i in range(1000)])], "loss")
    path = re.search(r'class="raw" d="([^"]+)"', svg)[1]
    points = [tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d. ]+)", path)]
    assert all(0 <= x <= 280 and 0 <= y <= 176 for x, y in points)
    assert len(points) <= 241


def test_bars_grow_from_zero_both_ways():
    heights = re.findall(r'height="([\d.]+)"', bar_chart([1.0, -1.0, 0.5], "mean"))
    assert heights[0] == heights[1]
    assert float(heights[2]) == pytest.approx(float(heights[0]) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2e-5, "2e-5"),
        (0.0213, "0.0213"),
        (12_345, "12.3k"),
        (999_999, "1M"),
        (4_091_328, "4.09M"),
        (1.5e12, "1.5T"),
        (2e18, "2e18"),
    ],
)
def test_numbers_are_short(value, text):
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.21, "8.2 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


# ---- a head that adds details -------------------------------------------------------------------


def write_gates(workdir, last_tenth, held_out):
    """Twenty logged steps, of which two are the last tenth, and an evaluation."""
    stage = workdir / "pretrain"
    stage.mkdir(parents=True)
    train = [{"step": step, "loss": 1.0, "loss/gate/t0.00": 99.0} for step in range(18)]
    train += [{"step": 18 + index, **row} for index, row in enumerate(last_tenth)]
    lines = [json.dumps(row) for row in (*train, {"step": 20, **held_out})]
    (stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_the_gate_is_drawn_over_flow_time_and_not_over_steps(tmp_path, monkeypatch):
    last = [
        {"loss/gate/t0.00": 2.0, "loss/gate/t0.50": 5.0, "loss/gate/t0.75": float("nan")},
        {"loss/gate/t0.00": 4.0, "loss/gate/t0.25": 1.0, "loss/gate/t0.75": 7.0},
    ]
    write_gates(tmp_path, last, {"eval/gate/t0.00": 3.0, "eval/gate/t0.50": 6.0})
    drawn = []

    def line_chart(series, label, **options):
        drawn.append((label, series))
        return charts.line_chart(series, label, **options)

    monkeypatch.setattr(gate, "line_chart", line_chart)
    page = write_report(tmp_path).read_text()
    ((label, (train, held_out)),) = drawn
    assert label == "pretrain: mean size of the gate over flow time"
    assert train == charts.Series([0.125, 0.375, 0.625, 0.875], [3.0, 1.0, 5.0, 7.0], "train")
    assert held_out == charts.Series([0.25, 0.75], [3.0, 6.0], "eval")
    assert '<section id="details">' in page and "gate/t0" not in page
    assert "No pictures without details yet" in page


def test_pictures_without_details_stand_beside_whole_ones(tmp_path):
    shown = Details("prompt/0", "a <red> dot", square("red"), square("blue"))
    write_records(tmp_path / "evaluation", {"details": [shown]})
    page = write_report(tmp_path).read_text()
    left, right = (page.index(f'alt="{words}"') for words in ("semantics alone", "with details"))
    assert left < right < page.index("a &lt;red&gt; dot")


def test_a_run_of_a_head_without_details_has_no_such_section(page):
    assert 'id="details"' not in page and "#details" not in page
