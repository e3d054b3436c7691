"""The registry of stages: what can be trained, on which data, and what it builds on.

Running, planning, settings, loading, import, export and evaluation read these tables; no other
module names a stage (`tests/runs/test_stage_names.py`). To add a stage, add a row to `STAGES`, and
where it needs them a row to `PARTS`, to `training.stages.LOSSES` and to `runs.loading.LOADERS`.

A stage's name is its group of settings in the configuration. `config.stages` may repeat a stage;
each occurrence is a stage run of its own with its own folder, `Occurrence.label`: the first one has
the plain name (`pretrain`), later ones are counted (`pretrain-2`).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from data_pipelines.build import image_policy
from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module
from unicom_jax.families.build import (
    VISION,
    build_codec,
    build_encoder,
    build_trained_autoencoder,
    build_unified,
    family_of,
)
from unicom_jax.families.family import Subtree
from unicom_jax.families.painters import decoder_group
from unicom_jax.models.paint_space import AUTOENCODER

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """What one or several stages train: a module, with its sizes in the configuration.

    Stages of the same part continue from each other's weights, and inference uses the weights of
    the furthest one.

    Attributes:
      build: builds the module.
      remat: gives the configuration key that sets what the part's largest stack keeps for the
        backward pass.
      reads: configuration groups, or single keys of them, that the part's module, losses and
        batches read besides `data` and the part's own group; None: any. A sweep shares a stage
        between variants that differ in none of them (`sweeps/addresses.py`).
    """

    build: Callable[[Config], Module]
    remat: Callable[[Config], str]
    reads: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage.

    Attributes:
      name: name of the settings in the configuration and of the folder.
      part: what the stage trains, a key of `PARTS`.
      loss: how the stage is built, a key of `training.stages.LOSSES`.
      loader: how batches are made, a key of `runs.loading.LOADERS`.
      tokens_per_step: tokens that one step reads, from (configuration, name), for reported rates.
      frozen: what the loss reads and does not train: name in `frozen` -> weights of a part that an
        earlier stage trained.
      autoencoder: whether it also reads the frozen autoencoder if the configuration names one.
      starts_from: top-level keys of the stage's own weights that start as weights of another part,
        unless an earlier stage of the same part was trained, which then provides all of them.
      of_family: whether `frozen` and `starts_from` are those of the configuration's family.
      wants_frozen: whether it reads `frozen` at all, given a configuration. Callers use `reads` and
        `begins_with`, which take this into account.
      samples: whether rollouts use the model as it was before the stage, with all that it needs.
        These are then `frozen`, the model as `START`, and the builder is given the tokenizer.
    """

    name: str
    part: str
    loss: str
    loader: str
    tokens_per_step: Callable[[Config, str], int]
    frozen: Mapping[str, Subtree] = dataclasses.field(default_factory=dict)
    autoencoder: bool = False
    starts_from: Mapping[str, Subtree] = dataclasses.field(default_factory=dict)
    of_family: bool = False
    samples: bool = False
    wants_frozen: Callable[[Config], bool] = lambda config: True

    def reads(self, config: Config) -> Mapping[str, Subtree]:
        """`frozen` for a configuration."""
        if self.samples:
            return {**self.for_rewards(config), **family_of(config).in_model, START: UNIFIED}
        if self.of_family:
            return family_of(config).frozen
        return self.frozen if self.wants_frozen(config) else {}

    def for_rewards(self, config: Config) -> Mapping[str, Subtree]:
        """What it reads for rewards alone: the encoder, if it compares pictures by their features
        and the model itself does without."""
        if not self.samples or not config[self.name]["rewards"]["cosine"]:
            return {}
        return {} if EYE in family_of(config).in_model else {EYE: VISION}

    def begins_with(self, config: Config) -> Mapping[str, Subtree]:
        """`starts_from` for a configuration."""
        return family_of(config).starts_from(config) if self.of_family else self.starts_from


UNIFIED = Subtree("unified")  # the model itself
START = "start"  # among frozen trees: the model's weights before a stage
EYE = "vision"  # the tree of the encoder's image tower

# ---- the tables -------------------------------------------------------------------------------


def _patches(config: Config, name: str) -> int:
    """Patches of the pictures in a step."""
    most = image_policy(config).max_patches(config["data"]["patch"], config["codec"]["pool"])
    return config[name]["batch_size"] * most


def _slots(config: Config, name: str) -> int:
    """Slots of the packed rows in a step."""
    return config[name]["batch_size"] * config[name]["sequence_length"]


def _codec_remat(config: Config) -> str:
    return f"{decoder_group(config)}.remat"


GRID = ("codec.pool", "unified.fold")  # sides of patch grids are multiples of their product

PARTS: dict[str, Part] = {
    "encoder": Part(build_encoder, lambda config: "encoder.vision.remat", GRID),
    # Its keys are those of an `AutoencoderKLFlux2`: encoder, quant_conv, decoder, post_quant_conv,
    # statistics (mean and variance of packed channels); and `discriminator` where there is one.
    "autoencoder": Part(
        build_trained_autoencoder, lambda config: "autoencoder.remat", ("encoder", *GRID)
    ),
    "codec": Part(
        build_codec, _codec_remat, ("encoder", "autoencoder", "unified.fold", "unified.pathway")
    ),
    "unified": Part(
        build_unified,
        lambda config: family_of(config).remat,
        ("unified", "encoder", "autoencoder", "codec"),
    ),
}


def _unified(name: str) -> StageSpec:
    """A stage of the unified model."""
    return StageSpec(
        name,
        part=UNIFIED.part,
        loss="unified",
        loader="rows",
        tokens_per_step=_slots,
        of_family=True,
    )


def _samples(config: Config, name: str) -> int:
    """Slots of the captions of the samples in a step."""
    settings = config[name]
    return settings["batch_size"] * settings["group_size"] * settings["max_tokens"]


def _policy(name: str, *, loss: str) -> StageSpec:
    """A stage that trains the unified model on what it writes and draws."""
    return StageSpec(
        name,
        part=UNIFIED.part,
        loss=loss,
        loader="prompts",
        tokens_per_step=_samples,
        autoencoder=True,
        samples=True,
    )


# In the usual order of training.
STAGES: dict[str, StageSpec] = {
    spec.name: spec
    for spec in (
        StageSpec(
            "encoder",
            part="encoder",
            loss="contrastive",
            loader="captioned",
            tokens_per_step=_patches,
        ),
        StageSpec(
            "autoencoder",
            part="autoencoder",
            loss="autoencoder",
            loader="pictures",
            tokens_per_step=_patches,
            frozen={"encoder": VISION},
            wants_frozen=lambda config: config["autoencoder"]["perceptual_weight"] > 0,
        ),
        StageSpec(
            "codec",
            part="codec",
            loss="codec",
            loader="pictures",
            tokens_per_step=_patches,
            frozen={"encoder": VISION},
            autoencoder=True,
        ),
        _unified("align"),
        _unified("pretrain"),
        _unified("continue"),
        _unified("sft"),
        _unified("longcap"),
        _unified("reca"),
        _policy("g4u", loss="captioner"),
        _policy("u4g", loss="drawer"),
        _policy("jointly", loss="both"),
    )
}


def in_model(config: Config) -> dict[str, Subtree]:
    """All weights that a trained model needs: name of the tree -> where it comes from."""
    return {**family_of(config).in_model, "unified": UNIFIED}


def reconstructing(config: Config) -> tuple[str, str]:
    """The parts that can reconstruct pictures on their own: the model's codec, an autoencoder."""
    return in_model(config)["codec"].part, AUTOENCODER


# ---- the stages of a configuration ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Occurrence:
    """The `number`-th time, counted from 1, that a run trains a stage."""

    name: str
    number: int = 1

    @property
    def label(self) -> str:
        """The name of its folder and in messages: `pretrain`, `pretrain-2`."""
        return self.name if self.number == 1 else f"{self.name}-{self.number}"

    @property
    def spec(self) -> StageSpec:
        return STAGES[self.name]

    @property
    def rank(self) -> tuple[int, int]:
        """Its place in the registry's order."""
        return list(STAGES).index(self.name), self.number


def parse(label: str) -> Occurrence | None:
    """The occurrence with this label; None if no stage of the registry has it."""
    if label in STAGES:
        return Occurrence(label)
    name, _, number = label.rpartition("-")
    if name in STAGES and number.isdecimal() and int(number) > 1 and number == str(int(number)):
        return Occurrence(name, int(number))
    return None


def names_a_run(given: str) -> bool:
    """Whether an `init_from` is WORKDIR:STAGE (`runs/origin.py`), not a folder of weights."""
    workdir, _, label = given.rpartition(":")
    return bool(workdir) and parse(label) is not None


def spec_of(label: str) -> StageSpec:
    """The stage of a label.

    Raises:
      ConfigError: no stage has it.
    """
    if (found := parse(label)) is None:
        raise ConfigError(f"stage {label!r} is unknown; stages are {', '.join(STAGES)}")
    return found.spec


def settings_of(config: Config, label: str) -> Any:
    """The settings of a stage, which all its occurrences share."""
    return config[spec_of(label).name]


def occurrences(names: Iterable[str]) -> list[Occurrence]:
    """What `config.stages` trains, in its order.

    Raises:
      ConfigError: an unknown stage.
    """
    seen: Counter = Counter()
    found = []
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"stage {name!r} is unknown; stages are {', '.join(STAGES)}")
        seen[name] += 1
        found.append(Occurrence(name, seen[name]))
    return found


def select(config: Config, labels: Sequence[str] | None) -> list[Occurrence]:
    """The stages to train: all of `config.stages`, or those with the given labels.

    Raises:
      ConfigError: an unknown stage, or a repetition that `config.stages` does not have.
    """
    planned = occurrences(config["stages"])
    if labels is None:
        return planned
    wanted = []
    for label in labels:
        found = parse(label)
        if found is None or (found.number > 1 and found not in planned):
            known = dict.fromkeys((*STAGES, *(one.label for one in planned)))
            raise ConfigError(f"stage {label!r} is unknown; stages are {', '.join(known)}")
        wanted.append(found)
    return wanted


def in_order(config: Config, also: Iterable[Occurrence]) -> list[Occurrence]:
    """The stages of `config.stages` and `also` in the order in which they build on each other.

    `config.stages` determines the order. Any other stage (a workdir may hold one that its
    configuration no longer lists) follows the last one that precedes it in the registry.
    """
    order = occurrences(config["stages"])
    for extra in sorted(set(also) - set(order), key=lambda one: one.rank):
        earlier = (place for place, one in enumerate(order, 1) if one.rank < extra.rank)
        order.insert(max(earlier, default=0), extra)
    return order


def row_stages(config: Config) -> list[str]:
    """The stages of `config.stages` that train on packed rows, each once; if there are none, all
    that the configuration has settings for."""
    on_rows = [name for name, spec in STAGES.items() if spec.loader == "rows" and name in config]
    listed = dict.fromkeys(name for name in config["stages"] if name in on_rows)
    return list(listed) or on_rows


def check_row_stage(config: Config, label: str) -> None:
    """Refuses a `--stage` that packs no rows.

    Raises:
      ConfigError: it packs none; the message lists the stages that do.
    """
    found = parse(label)
    if found is None or found.name not in config or found.spec.loader != "rows":
        known = [name for name, spec in STAGES.items() if spec.loader == "rows" and name in config]
        raise ConfigError(f"--stage={label} packs no rows; choose from {', '.join(known)}")


# ---- randomness -------------------------------------------------------------------------------


def seed_of(config: Config, label: str) -> int:
    """The seed of a stage: its own, or else that of the run."""
    own = settings_of(config, label).get("seed", -1)
    return config["seed"] if own < 0 else own


def with_seed_of(config: Config, label: str) -> dict[str, Any]:
    """A configuration whose `seed` is that of a stage, for what reads the stage's data."""
    return {**config, "seed": seed_of(config, label)}


def data_seed(config: Config, label: str) -> int | None:
    """The seed of the order of a stage's documents, below 2^31; None: the stage's seed itself.

    Each stage has its own seed; otherwise it would read the same documents in the same order as the
    stage before. Runs from before this rule have `stage_seeds=False`: their stages share the run's
    seed, unless they have one of their own.
    """
    if not config["stage_seeds"]:
        return None
    # crc32 rather than hash(): the latter is salted per process.
    return zlib.crc32(f"{seed_of(config, label)}/{label}".encode()) & 0x7FFFFFFF


def noise_fold(config: Config, label: str) -> int | None:
    """What is folded into the key of a stage's noise; None: nothing (see `data_seed`)."""
    return zlib.crc32(label.encode()) if config["stage_seeds"] else None
