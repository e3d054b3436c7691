"""`write_report(workdir)`: the whole run on one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from unicom_jax.core.paths import open_binary
from unicom_jax.evaluation.charts import Series, bar_chart, line_chart, short_number
from unicom_jax.evaluation.gate import gate_chart, is_of_gate
from unicom_jax.evaluation.report_inputs import Run, Stage, read_run
from unicom_jax.evaluation.scores import FACETS, PERCENT, score_names, standing, style_of
from unicom_jax.evaluation.stage_health import trouble
from unicom_jax.evaluation.suite import by_kind
from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.workdir import ROLLOUTS

REPORT_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
MAX_SIDE = 384  # pixels; larger pictures are reduced to this before they are inlined
HEADLINES = {
    "reconstruction/psnr": "reconstruction",
    "generation/overall": "generation, overall",
    "generation/retrieval": "generation, retrieved",
    "understanding/qa": "questions answered",
    "understanding/caption": "captions exact",
    "editing/success": "edits done",
    "unified/agreement": "described and drawn again",
}
LABELS = {"psnr": "PSNR", "ssim": "SSIM", "kid": "KID", "frechet": "Fréchet distance", "qa": "QA"}
LABELS |= {"caption_f1": "caption, F1 of words"}
# Keys of metrics.jsonl about speed, with the labels of their axes.
SPEED = {
    "steps_per_second": "steps per second",
    "tokens_per_second": "tokens per second",
    "data_wait": "share of time waiting for data",
    "data/filled": "share of slots filled",
    "mfu": "model FLOPs utilisation",
    "goodput": "share of all time in useful steps",
}
# Besides accuracies, these are between 0 and 1.
SHARES = ("data_wait", "data/filled", "mfu", "goodput")
CLOCK = ("step", "time", "time/eval", "time/save", "time/sample")


@dataclasses.dataclass(frozen=True)
class Chart:
    title: str
    latest: str
    svg: Markup


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """A score as text, with positions on its bar in percent of the axis."""

    name: str
    label: str
    value: str
    interval: str
    untrained: str
    chance: str
    count: str
    standing: str
    unit: str
    higher_is_better: bool
    marks: Mapping[str, float]


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Writes `workdir/report.html` from the files of the run there, and returns its path.

    A section whose input is missing says so in one line, as does a stage that diverged or has not
    ended. Raises FileNotFoundError without the folder and ValueError, naming the file, when an
    input is not readable.
    """
    run = read_run(workdir)
    page = environment().get_template("report.html.j2").render(**_view(run))
    path = run.workdir / REPORT_FILE
    write_text(path, page)
    return path


def environment(*folders: Path) -> jinja2.Environment:
    """The environment for pages in the report's style; templates in `folders` take precedence."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["css"] = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    environment.filters |= {
        "number": short_number,
        "duration": duration,
        "thousands": "{:,}".format,
    }
    return environment


def _view(run: Run) -> dict[str, Any]:
    records = run.records
    rows = score_rows(run.scores)
    parameters = _parameters(run.stages)
    return {
        "name": run.name,
        "picture": functools.partial(picture_uri, run.workdir / "evaluation"),
        "stages": run.stages,
        "troubles": _troubles(run),
        "about": about_lines(run.about) if rows else [],
        "parameters": parameters,
        "total_parameters": sum(parameters.values()),
        "total_seconds": sum(_seconds(stage) for stage in run.stages),
        "stage_seconds": {stage.name: _seconds(stage) for stage in run.stages},
        "stage_parts": {stage.name: _parts(stage) for stage in run.stages},
        "stage_steps": {stage.name: _steps(stage) for stage in run.stages},
        "devices": list(
            dict.fromkeys(s.facts["device"] for s in run.stages if s.facts.get("device"))
        ),
        "headlines": [(HEADLINES[row.name], row) for row in rows if row.name in HEADLINES],
        "score_suites": by_kind(rows, lambda row: row.name.partition("/")[0]),
        "curves": {stage.name: _curves(stage) for stage in run.stages},
        "speed": {stage.name: charts for stage in run.stages if (charts := _speed(stage))},
        "rollouts": [stage for stage in run.stages if stage.rollouts],
        "rollout_picture": lambda stage, name: picture_uri(
            run.workdir / stage.name / ROLLOUTS, name
        ),
        "codec": _codec(run.stages),
        "reconstructions": records.get("reconstructions", []),
        "gates": [(s.name, chart) for s in run.stages if (chart := gate_chart(s)) is not None],
        "details": records.get("details", []),
        "generations": by_kind(records.get("generations", []), lambda row: row["category"]),
        "edits": by_kind(records.get("edits", []), lambda row: row["kind"]),
        "answers": by_kind(records.get("answers", []), lambda row: row["kind"]),
        "captions": records.get("captions", []),
        "redrawings": records.get("unified", []),
        "config": json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else "",
    }


def score_rows(flat: Mapping[str, float | int | None]) -> list[ScoreRow]:
    """The rows of the score table, in order."""
    return [_score_row(flat, name) for name in score_names(flat)]


def _score_row(flat: Mapping[str, float | int | None], name: str) -> ScoreRow:
    style = style_of(name)
    facets = {facet: flat.get(f"{name}.{facet}") for facet in FACETS}
    shown = {"value": flat[name], **{facet: facets[facet] for facet in FACETS if facet != "n"}}
    known = {key: value for key, value in shown.items() if value is not None}
    best = style.best if style.best is not None else max([*known.values(), 1e-9]) * 1.05
    span = best - style.worst
    marks = {key: 100.0 * min(max((v - style.worst) / span, 0.0), 1.0) for key, v in known.items()}
    return ScoreRow(
        name=name,
        label=" · ".join(LABELS.get(part, part) for part in name.split("/")[1:]),
        value=style.show(flat[name]),
        interval=f"{style.show(facets['low'])} – {style.show(facets['high'])}",
        untrained=style.show(facets["untrained"]),
        chance=style.show(facets["chance"]),
        count=str(facets["n"]) if facets["n"] is not None else "–",
        standing=standing(flat, name),
        unit=style.unit if style.unit != "%" else "",
        higher_is_better=style.higher_is_better,
        marks=marks,
    )


def picture_uri(folder: Path, relative: str) -> Markup:
    """A picture as a data URI, with at most MAX_SIDE pixels per side.

    Raises ValueError naming the file when it is missing or not a picture.
    """
    path = folder / relative
    try:
        with open_binary(path) as file, Image.open(file) as image:
            image = image.convert("RGB")
    except OSError as error:
        raise ValueError(
            f"{path}: unreadable picture ({error}); run the evaluation again, or train on"
        ) from None
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())


def duration(seconds: float) -> str:
    """Seconds in words of two units at most: "2 h 05 min", "3 min 20 s", "8.2 s"."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def about_lines(about: Mapping[str, Any]) -> list[str]:
    """How the scores were computed, in sentences; [] if the file does not say."""
    if not about:
        return []
    shapes, policy = about["shapes"], about.get("policy", "fixed")
    shown = ", ".join(f"{shape} ({count})" for shape, count in list(shapes.items())[:8])
    more = f" and {len(shapes) - 8} more" if len(shapes) > 8 else ""
    square = all(len(set(shape.split(" x "))) == 1 for shape in shapes)
    low, high = about["guidance_interval"]
    between = "" if (low, high) == (0, 1) else f" between flow times {low:g} and {high:g}"
    used = (f"{part} from {name}" for part, name in about.get("checkpoints", {}).items())
    lines = {
        f"The {about.get('split')} split of {about.get('data')}.": "split" in about,
        f"Checkpoints: {', '.join(used)}.": about.get("checkpoints"),
        f"Sampling: {about['steps']} {about['sampler']} steps, guidance {about['guidance']:g}"
        f"{between}, seed {about['seed']}, {'with' if about['think'] else 'without'} a plan in "
        "words. Prompts are not rewritten.": True,
        f"Edits begin at flow time {about.get('edit_start', 0):g} with so much of their source.": (
            about.get("edit_start")
        ),
        "The flow times are those of Cheers' published code.": about.get("grid") == "released",
        f"Drawings are judged by {about['judge']}, answers compared by the rule "
        f"“{about['answer_rule']}”.": True,
        f"Of {about.get('best_of')} drawings of each prompt and description, the best one counts, "
        "chosen by the judge or, without one, by the encoder.": about.get("best_of"),
        f"Shapes of the pictures (height x width): {shown}{more}.": shapes,
        f"The image policy is {policy}, but the pictures are square: no other shape was scored.": (
            shapes and square and policy != "fixed"
        ),
        f"No encoder was there to measure {', '.join(about.get('left_out', []))}.": (
            about.get("left_out")
        ),
        "Nothing was held out: these are scores on training data.": about.get("trained_on"),
        f"The data changed since training ({'; '.join(about.get('data_changed', []))}), so some of "
        "the samples may have been trained on.": about.get("data_changed"),
    }
    return [line for line, holds in lines.items() if holds]


def _troubles(run: Run) -> list[tuple[str, str]]:
    """(name, sentence) of each stage that did not end well."""
    found = []
    for stage in run.stages:
        settings = run.config.get(stage.name)
        planned = settings.get("steps") if isinstance(settings, Mapping) else None
        found.append((stage.name, trouble(stage.train, stage.evals, stage.facts, planned)))
    return [(name, text) for name, text in found if text]


def _parameters(stages: Sequence[Stage]) -> dict[str, int]:
    """Counts by part over all stages; sub-stages that train the same part count it once."""
    parts: dict[str, int] = {}
    for stage in stages:
        parts |= stage.facts.get("parameters", {})
    return parts


def _parts(stage: Stage) -> str:
    """ "compressor 4.1M, pixel decoder 2M; frozen: encoder 9M" for the table of stages.

    A part that is trained only partly is in both lists, with the number of weights in each.
    """
    counts = stage.facts.get("parameters", {})
    trained = stage.facts.get("trained")
    if trained is None:  # older runs have only the patterns; they froze whole parts
        frozen = {pattern.split("/")[0] for pattern in stage.facts.get("freeze", [])}
        trained = {part: n for part, n in counts.items() if part not in frozen}
    held = {part: n - trained.get(part, 0) for part, n in counts.items()}
    moving, still = (
        ", ".join(f"{part.replace('_', ' ')} {short_number(n)}" for part, n in sizes.items() if n)
        for sizes in (trained, held)
    )
    return f"{moving}; frozen: {still}" if still else moving


def _seconds(stage: Stage) -> float:
    return float(stage.facts.get("seconds") or _latest(stage, "time") or 0.0)


def _steps(stage: Stage) -> int:
    return int(stage.facts.get("steps") or _latest(stage, "step") or 0)


def _latest(stage: Stage, key: str) -> float | None:
    return next((row[key] for row in reversed(stage.train) if key in row), None)


def _curves(stage: Stage) -> list[Chart]:
    """One chart per metric: total loss, its terms, other metrics, then those only in evals.

    "eval/flow" and "eval/loss/flow" are drawn with "loss/flow". Metrics that are always 0 (steps
    skipped) are left out, and so are the counts for losses, and gates, which are drawn over flow
    time.
    """
    train = _numeric_keys(stage.train, skip=(*CLOCK, *SPEED))
    train = [key for key in train if not (key.startswith("count/") or is_of_gate(key))]
    train.sort(key=lambda key: (key != "loss", not key.startswith("loss/")))
    evals = [key for key in _numeric_keys(stage.evals, skip=CLOCK) if not is_of_gate(key)]
    held_out = {
        key: name
        for key in train
        for name in (f"eval/{key}", f"eval/{key.removeprefix('loss/')}")
        if name in evals
    }
    charts = [_chart(stage, key, held_out.get(key)) for key in train]
    charts += [_chart(stage, None, key) for key in evals if key not in held_out.values()]
    return [chart for chart in charts if chart.svg]


def _speed(stage: Stage) -> list[Chart]:
    keys = _numeric_keys(stage.train, skip=())
    charts = [_chart(stage, key, None, SPEED[key]) for key in SPEED if key in keys]
    return [chart for chart in charts if chart.svg]


def _chart(stage: Stage, train: str | None, evaluation: str | None, title: str = "") -> Chart:
    series = []
    for rows, key, role in ((stage.train, train, "train"), (stage.evals, evaluation, "eval")):
        if key is not None:
            points = [(row["step"], row[key]) for row in rows if _is_number(row.get(key))]
            series.append(Series([x for x, _ in points], [y for _, y in points], role))
    title = title or (train or evaluation or "").replace("_", " ")
    finite = [y for curve in series for y in curve.ys if math.isfinite(y)]
    latest = (
        " · ".join(short_number(curve.ys[-1]) for curve in series if curve.ys) if finite else ""
    )
    rate = _is_rate(train or evaluation or "")
    return Chart(title, latest, Markup(line_chart(series, f"{stage.name}: {title}", rate=rate)))


def _is_rate(key: str) -> bool:
    name = key.rpartition("/")[2]
    scored = key.startswith("generation/") and style_of(key) is PERCENT
    return scored or key in SHARES or name == "retrieval" or name.endswith("accuracy")


def _numeric_keys(rows: Sequence[Mapping[str, Any]], skip: Sequence[str]) -> list[str]:
    """Keys that hold a number other than 0 somewhere, in order of appearance."""
    items = (item for row in rows for item in row.items())
    keys = dict.fromkeys(key for key, value in items if _is_number(value) and value != 0)
    return [key for key in keys if key not in skip]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _codec(stages: Sequence[Stage]) -> dict[str, Any] | None:
    """Bar charts of the latents' mean and deviation per channel, as measured after training."""
    facts = next((s.facts for s in reversed(stages) if s.facts.get("latent_std")), None)
    if facts is None:
        return None
    mean, deviation = facts.get("latent_mean") or [], facts["latent_std"]
    return {
        "channels": len(deviation),
        "mean": Markup(bar_chart(mean, "mean of each latent channel", 0.0)),
        "std": Markup(bar_chart(deviation, "standard deviation of each latent channel")),
        "smallest": min(deviation),
        "largest": max(deviation),
    }
