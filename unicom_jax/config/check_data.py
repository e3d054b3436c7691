"""The rules between keys of the data, their sources and the stages that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unicom_jax.config.key import ConfigError
from unicom_jax.config.schema import KEYS, ROW_STAGES, STAGES
from unicom_jax.core.image_policies import SQUARE

Config = Mapping[str, Any]
SCENE_SIDES = range(16, 4097)  # pixels


def check_data(config: Config) -> None:
    """Looks at what all stages share.

    Raises:
      ConfigError: it names the key and the fix.
    """
    data = config["data"]
    _check_policy(config, data)
    if not data["response_close"]:
        raise ConfigError(
            "data.response_close is empty, so no answer would ever end; give the text that ends one"
        )
    _check_sampling(config["sample"], config["unified"])
    _check_sources(data)
    if any(source["kind"] == "scenes" for source in data["sources"] or [data["source"]]):
        _check_scenes(data["scenes"])


def _check_policy(config: Config, data: Config) -> None:
    """The sizes of pictures against those of patches, latents and slots."""
    pool, fold = config["codec"]["pool"], config["unified"]["fold"]
    policy, size, unit = data["policy"], data["image_size"], data["patch"] * pool * fold
    if policy != "naflex" and size % unit:
        what = f"data.patch={data['patch']}"
        what += f" times codec.pool={pool}" if pool > 1 else ""
        what += f" times unified.fold={fold}" if fold > 1 else ""
        near = [n * unit for n in (size // unit, size // unit + 1) if n]
        raise ConfigError(
            f"data.image_size={size} is not a multiple of {what}; take "
            f"{' or '.join(map(str, near))}"
        )
    if policy.startswith("bucket") and data["bucket_step"] % unit:
        raise ConfigError(
            f"data.bucket_step={data['bucket_step']} is not a multiple of {unit} pixels "
            "(data.patch times codec.pool times unified.fold)"
        )
    if policy == "bucket_walk" and size % data["bucket_step"]:
        raise ConfigError(
            f"data.image_size={size} is not a multiple of data.bucket_step={data['bucket_step']}, "
            "as policy bucket_walk needs it"
        )
    if data["understood_policy"] != "same" and policy not in SQUARE:
        raise ConfigError(
            f"data.understood_policy={data['understood_policy']!r} needs data.policy to be one of "
            f"{', '.join(SQUARE)}, not {policy!r}; set it to same, or change data.policy"
        )


def _check_sampling(sample: Config, unified: Config) -> None:
    low, high = sample["guidance_interval"]
    if low > high:
        raise ConfigError(f"sample.guidance_interval={(low, high)}: give the smaller time first")
    at_1 = unified["pathway"] == "cheers" and unified["prediction"] == "velocity"
    if sample["grid"] != "even" and not at_1:
        raise ConfigError(
            f"sample.grid={sample['grid']} needs the velocity at t = 1, which only "
            "unified.pathway=cheers with unified.prediction=velocity computes; set it to even"
        )


def _check_scenes(scenes: Config) -> None:
    for size in scenes["sizes"]:
        if len(size) != 2 or any(type(side) is not int or side not in SCENE_SIDES for side in size):
            raise ConfigError(
                f"data.scenes.sizes={scenes['sizes']!r}: give pairs (height, width) of whole "
                f"numbers from {SCENE_SIDES[0]} to {SCENE_SIDES[-1]}"
            )
    for name in ("sizes", "object_weights", "shapes", "colours", "object_sizes", "backgrounds"):
        if not scenes[name]:
            raise ConfigError(f"data.scenes.{name} is empty; give at least one")
    if scenes["alike_share"] + scenes["distinct_share"] > 1:
        raise ConfigError(
            "data.scenes.alike_share and distinct_share sum to more than 1; lower one of them"
        )
    if max(scenes["object_weights"]) <= 0:
        raise ConfigError("data.scenes.object_weights are all 0; give one of them a weight")


def _check_sources(data: Config) -> None:
    if not data["sources"]:
        return
    for name, value in data["source"].items():
        if value != KEYS[f"data.source.{name}"].default:
            raise ConfigError(
                f"data.source.{name}={value!r} does nothing beside data.sources; set it to "
                f"{KEYS[f'data.source.{name}'].default!r}, or leave data.sources out"
            )
    for index, source in enumerate(data["sources"]):
        for stage in source["stages"]:
            if stage not in STAGES:
                raise ConfigError(
                    f"data.sources[{index}].stages: {stage!r} is unknown; stages are "
                    f"{', '.join(STAGES)}"
                )
    _check_splits(data["sources"])


def _check_splits(sources: Sequence[Config]) -> None:
    """Refuses two sources of the same data that hold out different records of them."""
    first: dict[tuple, int] = {}
    for index, source in enumerate(sources):
        data = tuple(source[key] for key in ("path", "split", "subset", "revision"))
        other = first.setdefault(data, index)
        for key in ("held_out", "eval_split", "piece"):
            if source["path"] and source[key] != (before := sources[other][key]):
                raise ConfigError(
                    f"data.sources[{index}].{key}={source[key]!r}, but data.sources[{other}] reads "
                    f"the same data with {before!r}, so one would train on what the other "
                    "evaluates on; give both the same value"
                )


def check_stage_sources(stage: str, config: Config) -> None:
    """Refuses a stage without a source, and tasks that come from nowhere.

    Raises:
      ConfigError: it names the key and the fix.
    """
    sources, settings = config["data"]["sources"], config[stage]
    own = [s for s in sources if not s["stages"] or stage in s["stages"]]
    if sources and not own:
        raise ConfigError(
            f"none of data.sources is for stage {stage!r}; add it to the stages of one, or leave "
            "them ()"
        )
    if stage not in ROW_STAGES:
        return
    shares = {task: share for task, share in settings["mixture"].items() if share}
    open_ones = [s for s in own if not s["tasks"]]
    if not shares and (open_ones or not sources):
        otherwise = ", or give each of data.sources its tasks" if sources else ""
        raise ConfigError(
            f"{stage}.mixture is 0 for every task; give one a share, for example "
            f"--config.{stage}.mixture.text_to_image=1{otherwise}"
        )
    if shares and own and not open_ones:
        raise ConfigError(
            f"{stage}.mixture.{next(iter(shares))} does nothing, because every source of the "
            "stage names its tasks; set it to 0, or leave out the tasks of a source"
        )
