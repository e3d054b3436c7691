"""A sweep as a Python file describes it: `get_sweep()` returns a `Sweep`.

def get_sweep() -> Sweep:
    return Sweep(
        claim="A wider transformer answers more questions.",
        config=quickstart.get_config(),
        variants={"narrow": {}, "wide": {"unified.transformer.width": 256}},
        seeds=(0, 1, 2),
        scores=("understanding/qa", "pretrain:eval/loss"),
        contrasts=(Contrast("understanding/qa", better="wide", worse="narrow"),),
        minutes=90,
    )
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unicom_jax.config import ConfigError
from unicom_jax.config.files import call_in_file, check_values, failure, set_values
from unicom_jax.runs.stages import parse

Change = Mapping[str, Any] | Callable[[ConfigDict], ConfigDict | None]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
SPLITS = ("development", "test")
# Field -> its type, and an example.
TYPES = {
    "variants": (Mapping, "a dict, such as {'narrow': {}, 'wide': {'pretrain.steps': 2}}"),
    "seeds": (Sequence, "a tuple of numbers, such as (0, 1, 2)"),
    "scores": (Sequence, "a tuple of texts, such as ('understanding/qa',)"),
    "contrasts": (Sequence, "a tuple, such as (Contrast(...),) with the comma"),
    "minutes": (int | float, "a number of CPU minutes, such as 90"),
}


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Two variants of which the claim expects one to be better in a score.

    Attributes:
      paper: what the paper reports, in words ("+3.1 points"); "" where it gives no figure.
    """

    score: str
    better: str
    worse: str
    paper: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is compared, on what, and why.

    Attributes:
      claim: what the sweep tests, in one sentence.
      config: the configuration that all variants begin with.
      variants: name -> what it changes: values by dotted key, or a function that changes a copy of
        `config` (or returns another one).
      seeds: each variant is trained with each of them, as `config.seed`.
      scores: what is measured. "SUITE/QUANTITY" is a score of `unicom evaluate`,
        "STAGE:eval/NAME" a held-out metric of a stage at its end (metrics.jsonl).
      contrasts: the comparisons that decide about the claim; without any, each further variant is
        compared with the first one in every score.
      minutes: CPU time in minutes after which no further stage is started.
      split: of the data that is scored.
      baseline: whether the untrained models are scored, too.
    """

    claim: str
    config: ConfigDict
    variants: Mapping[str, Change]
    seeds: Sequence[int]
    scores: Sequence[str]
    contrasts: Sequence[Contrast] = ()
    minutes: float
    split: str = "test"
    baseline: bool = False

    @property
    def evaluates(self) -> bool:
        """Whether a score needs `unicom evaluate`."""
        return any(stage_of(score) is None for score in self.scores)

    def compared(self) -> tuple[Contrast, ...]:
        """`contrasts`, or every further variant against the first one."""
        if self.contrasts:
            return tuple(self.contrasts)
        first, *others = self.variants
        return tuple(Contrast(score, other, first) for score in self.scores for other in others)


def stage_of(score: str) -> tuple[str, str] | None:
    """(stage, metric) of "STAGE:eval/NAME"; None of a score of `unicom evaluate`."""
    stage, colon, metric = score.partition(":")
    return (stage, metric) if colon else None


def load_sweep(path: str) -> Sweep:
    """Runs `get_sweep()` of a Python file.

    Raises:
      ConfigError: the file is missing, does not run, or describes something that cannot be. It
        names the file and what to change.
    """
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file; see experiments/sweeps/ for the ones that ship")
    sweep = call_in_file(path, "get_sweep")
    if not isinstance(sweep, Sweep):
        raise ConfigError(
            f"{path}: get_sweep() returns {type(sweep).__name__}; return a Sweep of "
            "unicom_jax.sweeps.sweep"
        )
    try:
        _check(sweep)
        check_values(sweep.config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return sweep


def _check(sweep: Sweep) -> None:
    if not isinstance(sweep.config, ConfigDict):
        raise ConfigError(
            f"config is a {type(sweep.config).__name__}; give a ConfigDict, such as "
            "experiments.base.get_config() returns"
        )
    for field, (kind, example) in TYPES.items():
        value = getattr(sweep, field)
        if not isinstance(value, kind) or isinstance(value, str | bool):
            raise ConfigError(f"{field}={value!r} is a {type(value).__name__}; give {example}")
    for field in ("variants", "seeds", "scores"):
        if not getattr(sweep, field):
            raise ConfigError(f"{field} is empty; give at least one")
    for name in sweep.variants:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ConfigError(
                f"variant {name!r} names a folder; use letters, digits, and . _ + - behind the "
                "first one"
            )
    for name, change in sweep.variants.items():
        if not callable(change) and not isinstance(change, Mapping):
            raise ConfigError(
                f"variant {name!r} is {change!r}; give values by dotted key, such as "
                "{'pretrain.steps': 2}, or a function"
            )
        if not callable(change) and "seed" in change:
            raise ConfigError(f"variant {name!r} sets the seed; list seeds in seeds=(0, 1, ...)")
    for field, kind, words in (
        ("seeds", int, "a whole number, such as 0"),
        ("scores", str, "a text, such as 'understanding/qa'"),
        ("contrasts", Contrast, "a Contrast of unicom_jax.sweeps.sweep"),
    ):
        _check_items(field, getattr(sweep, field), kind, words)
    if sweep.split not in SPLITS:
        raise ConfigError(f"split={sweep.split!r} is unknown; choose {' or '.join(SPLITS)}")
    if not 0 < sweep.minutes < math.inf:
        raise ConfigError(f"minutes={sweep.minutes} is no limit of time; give CPU minutes above 0")
    for score in sweep.scores:
        _check_score(score)
    counts = Counter(map(_compared, sweep.contrasts))
    for contrast in sweep.contrasts:
        for name in (contrast.better, contrast.worse):
            if name not in sweep.variants:
                raise ConfigError(
                    f"a contrast names the variant {name!r}; variants are "
                    f"{', '.join(sweep.variants)}"
                )
        if contrast.better == contrast.worse:
            raise ConfigError(
                f"a contrast compares the variant {contrast.better!r} with itself; name two"
            )
        if counts[_compared(contrast)] > 1:
            raise ConfigError(
                f"two contrasts compare {contrast.better!r} and {contrast.worse!r} by "
                f"{contrast.score!r}, in both directions or in the same one; remove one"
            )
        if contrast.score not in sweep.scores:
            raise ConfigError(
                f"a contrast names the score {contrast.score!r}, which is not in scores; add it"
            )


def _compared(contrast: Contrast) -> tuple[str, frozenset[str]]:
    """What is compared: alike for contrasts that differ in direction or in the paper's figure."""
    return contrast.score, frozenset((contrast.better, contrast.worse))


def _check_items(field: str, items: Sequence[Any], kind: type, words: str) -> None:
    for number, item in enumerate(items):
        if not isinstance(item, kind) or isinstance(item, bool):
            raise ConfigError(f"{field} holds {item!r}; each has to be {words}")
        if item in items[:number]:
            raise ConfigError(f"{field} has {item!r} twice; remove one")


def _check_score(score: str) -> None:
    found = stage_of(score)
    if found is None and "/" in score:
        return
    if found is None or parse(found[0]) is None or not found[1].startswith("eval/"):
        raise ConfigError(
            f"score {score!r} is not understood; give SUITE/QUANTITY of unicom evaluate, such as "
            "generation/overall, or STAGE:eval/NAME of a stage's held-out metrics"
        )


def variant_config(sweep: Sweep, name: str, seed: int) -> ConfigDict:
    """The configuration of a variant.

    Raises:
      ConfigError: its change sets a key or a value that does not exist; it names the variant.
    """
    config = sweep.config.copy_and_resolve_references()
    change = sweep.variants[name]
    try:
        if callable(change):
            found = _called(change, config)
            if found is config and config.seed != sweep.config.seed:
                raise ConfigError("the function sets the seed; list seeds in seeds=(0, 1, ...)")
            config = found
            check_values(config)
        else:
            set_values(config, change)
        set_values(config, {"seed": seed})
    except ConfigError as error:
        raise ConfigError(f"variant {name}: {error}") from error
    return config


def _called(change: Callable[[ConfigDict], ConfigDict | None], config: ConfigDict) -> ConfigDict:
    """The configuration that a function of a sweep's file changed or returned."""
    try:
        found = change(config)
    except ConfigError:
        raise
    except Exception as error:
        code = getattr(change, "__code__", None)
        raise ConfigError(failure(Path(code.co_filename if code else "?"), error)) from error
    if not isinstance(found, ConfigDict | None):
        raise ConfigError(
            f"its function returns {type(found).__name__}; return a ConfigDict, or nothing"
        )
    return config if found is None else found
