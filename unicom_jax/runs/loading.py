"""The batches of a stage: which loader makes them, and with which seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.batches import Share, picture_loader, prompt_loader, unified_loader
from data_pipelines.loading.loader import Loader
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.split import TRAIN
from unicom_jax.runs.stages import data_seed, spec_of, with_seed_of


def _rows(label: str, *arguments: Any, **options: Any) -> Loader:
    """Every occurrence of a stage has its own seed and so its own folder of packed rows."""
    return unified_loader(*arguments, folder=label, **options)


def _pictures(label: str, *arguments: Any, **options: Any) -> Loader:
    return picture_loader(*arguments, captioned=False, **options)


def _captioned(label: str, *arguments: Any, **options: Any) -> Loader:
    return picture_loader(*arguments, captioned=True, **options)


# By a stage's setting `captions`: which caption of its data `PictureConfig` reads.
CAPTIONS = {"own": "none", "data": "last", "any": "any"}


def _prompts(
    label: str, config: Mapping[str, Any], stage: str, *how: Any, **options: Any
) -> Loader:
    """Captions and questions are read only if the stage's settings use them."""
    settings = config[stage]
    return prompt_loader(
        config,
        stage,
        *how,
        captions=CAPTIONS[settings.get("captions", "own")],
        questions=settings["rewards"].get("answers", 0.0) > 0,
        **options,
    )


# By `StageSpec.loader`. A loader takes the stage's label, then the arguments of `picture_loader`.
LOADERS: dict[str, Callable[..., Loader]] = {
    "rows": _rows,
    "pictures": _pictures,
    "captioned": _captioned,
    "prompts": _prompts,
}


def stage_loader(
    config: Mapping[str, Any],
    label: str,
    tokenizer: Tokenizer,
    split: str = TRAIN,
    start: int = 0,
    share: Share = None,
) -> Loader:
    """The batches of any stage from step `start` on, each with only the rows in `share`."""
    spec, seed = spec_of(label), data_seed(config, label)
    make = LOADERS[spec.loader]
    return make(
        label, with_seed_of(config, label), spec.name, tokenizer, split, start, share, seed=seed
    )
