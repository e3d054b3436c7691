"""The README.md of an exported model: what it is, how it was made, how to use it, its limits."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from data_pipelines.sources.configured import source_kinds
from unicom_jax.exchange.hub import origins_of
from unicom_jax.interop.layouts.exported import Model, twin_of
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.stages import in_order, parse, settings_of
from unicom_jax.runs.weights import Choice
from unicom_jax.runs.workdir import FACTS, read_json

CARD = """\
---
{metadata}
---

# {name}

{about}

{sizes}

## Use

```python
from PIL import Image
from transformers import AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
picture = Image.open("picture.png")
print(model.caption(picture))
print(model.answer(picture, "What colour is it?"))
model.draw("a red circle", seed=0)[0].save("drawn.png")
model.edit(picture, "make it blue")[0].save("edited.png")
model.reconstruct(picture)[0].save("reconstructed.png")
```

Each method takes one input or a list and returns a list. `paint` and `write` continue whole
conversations. Pictures are {pictures}. The same seed gives the same picture as in JAX.

The model is also a causal vision-language model for transformers: `AutoProcessor`,
`AutoModelForImageTextToText`, `generate` and pipelines work as for other models.

```python
from transformers import pipeline

ask = pipeline("image-text-to-text", model="{name}", trust_remote_code=True)
content = [{{"type": "image", "image": picture}}, {{"type": "text", "text": "What colour is it?"}}]
print(ask(text=[{{"role": "user", "content": content}}], return_full_text=False))
```

## Training

{training}

Data: {data}. Weights: {weights}.

## Scores

{scores}

## Limits

- It knows what its data shows and little else; read the scores with their intervals.
- It was not trained to refuse, and nothing filters what it writes or draws.
- It draws pictures {pictures} only, and answers in a few words unless its data had longer ones.
{about_weights}
- `trust_remote_code=True` runs the Python files of this folder. Read them first: they import torch,
  transformers, numpy and Pillow{diffusers}.

## Licence

The code in this folder is under Apache-2.0. The licence of the weights follows from the data and
from any weights that training started from; whoever publishes them has to state it.
"""


KINDS = {
    "ema": "averaged (EMA)",
    "raw": "as trained, not averaged",
    "base": "those under the adapters of its last stage",
}


def model_card(
    workdir: Path,
    config: Mapping[str, Any],
    module: Model,
    steps: Mapping[str, tuple[str, int]],
    choice: Choice,
) -> str:
    """The card of a run. `steps`: part -> (stage, steps); `choice`: as given to the export."""
    used = (parse(label) for label, _ in steps.values())
    stages = [stage.label for stage in in_order(config, filter(None, used))]
    name = workdir.resolve().name
    scores = _scores(workdir / "scores.json", steps, choice)
    twin = twin_of(config)
    about = f"{twin.about} Trained with unicom_jax and exported to PyTorch."
    about_weights = [
        f"Loaded in a half precision, the model keeps {twin.exact} in float32, as in training. "
        "Converting the loaded model as a whole (`model.half()`) rounds these weights too."
    ]
    if "vision encoder" in module.parts:
        about_weights.append(
            "The text tower of the encoder's contrastive training is not part of the folder: this "
            "model scores no picture against a text."
        )
    return CARD.format(
        about=textwrap.fill(about, 100),
        about_weights="\n".join(map(_item, about_weights)),
        metadata=_metadata(
            name, config, origins_of(workdir, config), {} if isinstance(scores, str) else scores
        ),
        name=name,
        sizes=_sizes(module),
        pictures=_pictures(config["data"]),
        training=_training(workdir, stages, config),
        data=", ".join(f"`{kind}`" for kind in source_kinds(config)),
        weights=KINDS.get(choice.kind, "those that the run itself uses (averaged if EMA was on)")
        + (f"; of stage {' at step '.join(map(str, steps['unified']))}" if choice.step else ""),
        scores=scores if isinstance(scores, str) else _score_table(scores),
        diffusers=""
        if "KL autoencoder" not in module.parts
        else ", and diffusers for the autoencoder",
    )


def _item(text: str) -> str:
    """An item of a list in Markdown."""
    return textwrap.fill(f"- {text}", 100, subsequent_indent="  ")


def _metadata(
    name: str, config: Mapping[str, Any], origins: Sequence[str], scores: Mapping[str, Any]
) -> str:
    """The card's YAML header, which the Hub reads.

    The licence is "other", since whoever publishes the weights has to state their licence.

    Args:
      origins: models of the Hub from which training started.
    """
    source = "+".join(source_kinds(config))
    results = [
        EvalResult(
            task_type="any-to-any",
            dataset_type=source,
            dataset_name=source,
            metric_type=score,
            metric_value=round(value, 6),
        )
        for score, value in scores.items()
        if f"{score}.n" in scores and value is not None
    ]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="any-to-any",
        license="other",
        license_name="to-be-stated",
        license_link="README.md#licence",
        tags=["unicom", "image-to-text", "text-to-image", "image-editing"],
        base_model=list(origins) or None,
        model_name=name if results else None,
        eval_results=results or None,
    ).to_yaml()


def _sizes(module: Model) -> str:
    counts = {name: sum(one.param_count() for one in part) for name, part in module.parts.items()}
    whole = module.param_count()
    counts["projections and heads"] = whole - sum(counts.values())
    rows = [(name, f"{count:,}") for name, count in (*counts.items(), ("all", whole))]
    return _table(("part", "parameters"), rows)


def _pictures(data: Mapping[str, Any]) -> str:
    side, most = data["image_size"], data["max_tokens"]
    about = f"of about {side} x {side} pixels in several aspect ratios"
    return {
        "fixed": f"of {side} x {side} pixels",
        "bucket": about,
        "bucket_walk": about,
        "naflex": f"of any aspect ratio with at most {most} patches of {data['patch']} pixels",
    }[data["policy"]]


def _training(workdir: Path, stages: Iterable[str], config: Mapping[str, Any]) -> str:
    rows = []
    for name in stages:
        path = workdir / name / FACTS
        if not path.is_file():
            continue
        facts, settings = read_json(path, CheckpointError), settings_of(config, name)
        if lacking := {"steps", "seconds", "device"} - facts.keys():
            raise CheckpointError(
                f"{path} lacks {', '.join(sorted(lacking))}; restore it from a copy, or delete "
                "it to export without the record of this stage"
            )
        rows.append(
            (
                name,
                f"{facts['steps']:,}",
                str(settings["batch_size"]),
                f"{settings['optimizer']}, {settings['learning_rate']:g}",
                f"{facts['seconds'] / 60:.1f} min",
                str(facts["device"]),
            )
        )
    if not rows:
        return "The run left no records of its stages."
    return _table(("stage", "steps", "batch", "optimiser", "time", "on"), rows)


def _scores(
    path: Path, steps: Mapping[str, tuple[str, int]], choice: Choice
) -> dict[str, Any] | str:
    """The scores of the checkpoints of the card, or a sentence on why there are none."""
    if not path.is_file():
        return "Not evaluated."
    found = read_json(path, CheckpointError)
    evaluated = found.get("about", {}).get("checkpoints", {})
    if any(
        evaluated.get(part, f"{stage} {n}") != f"{stage} {n}" for part, (stage, n) in steps.items()
    ):
        of = ", ".join(evaluated.values())
        return f"Not evaluated at this step; the scores of the run are of {of}."
    if choice.step and not evaluated:
        return "Not evaluated at this step."
    return found


def _score_table(found: Mapping[str, Any]) -> str:
    """Every score with its interval, and the untrained model's score if that was evaluated."""
    about = found.get("about", {})
    rows = [
        (
            name,
            _number(value),
            f"{_number(found.get(f'{name}.low'))} to {_number(found.get(f'{name}.high'))}",
            _number(found.get(f"{name}.n")),
            _number(found.get(f"{name}.untrained")),
            _number(found.get(f"{name}.chance")),
        )
        for name, value in found.items()
        if f"{name}.n" in found
    ]
    table = _table(("score", "value", "95% interval", "samples", "untrained", "chance"), rows)
    return f"On the {about['split']} split.\n\n{table}" if "split" in about else table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
