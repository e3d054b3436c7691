"""Values that do not go together: they would fail only later, or train something else in silence.

`files.check_values` looks at each key by itself; here are the rules between several.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from unicom_jax.config.check_data import check_data, check_stage_sources
from unicom_jax.config.check_tuned import check_tuned, check_tuned_stage
from unicom_jax.config.key import NEUTRAL, ConfigError, Key, checked
from unicom_jax.config.keys.autoencoder import AUTOENCODER
from unicom_jax.config.keys.unified import CHEERS
from unicom_jax.config.schema import KEYS, POLICY_STAGES, ROW_STAGES, STAGES, value_at, values

Config = Mapping[str, Any]


def check_settings(config: Config, stages: Iterable[str]) -> None:
    """Looks at what all stages share, and at the settings of `stages`.

    Raises:
      ConfigError: names the key, its value and what it may be.
    """
    stages = tuple(stages)
    for stage in stages:
        if stage not in STAGES:
            raise ConfigError(f"stage {stage!r} is unknown; stages are {', '.join(STAGES)}")
    others = set(STAGES) - set(stages)
    for name, value in values(config):
        # The towers of `encoder` and the sizes of `codec` matter to stages after them, too.
        if name in KEYS and name.split(".")[0] not in others & set(ROW_STAGES):
            checked(name, KEYS[name], value)
    if not config["stages"]:
        raise ConfigError("stages=() trains nothing; give at least one stage")
    check_data(config)
    _check_encoder(config)
    _check_codec(config)
    if any(STAGES[stage] is AUTOENCODER for stage in stages):
        _check_autoencoder(config)
    if set(stages) & {*ROW_STAGES, *POLICY_STAGES}:
        _check_unified(config)
    if config["wandb_project"] and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"wandb_project={config['wandb_project']!r} needs a package that is missing; "
            "pip install 'unicom_jax[wandb]', or leave the key empty"
        )
    for stage in stages:
        _check_stage(stage, config[stage])
        check_tuned_stage(stage, config)
        check_stage_sources(stage, config)
        if stage in ROW_STAGES:
            _check_rows(stage, config[stage])
            _check_parts(stage, config)
            _check_redrawing(stage, config)
        if stage in POLICY_STAGES:
            _check_rewards(stage, config[stage])


def _check_parts(stage: str, config: Config) -> None:
    """What is evaluated by itself can be."""
    for key, what in (("eval_by_task", "task"), ("eval_by_source", "source")):
        if config[stage][key] and config["data"]["packed"]:
            raise ConfigError(
                f"{stage}.{key}=True makes rows of each {what}, and data.packed has rows of the "
                "mixture only; leave one of them out"
            )
    if config[stage]["eval_by_source"] and not config["data"]["sources"]:
        raise ConfigError(f"{stage}.eval_by_source=True needs data.sources; leave it out")


def _check_redrawing(stage: str, config: Config) -> None:
    """What is drawn again is not read as the very latents that are drawn."""
    read = config["unified"]["understanding"]
    if read != "features" and _reads_task(stage, config, "redraw"):
        raise ConfigError(
            f"{stage} has the task redraw with unified.understanding={read}: the latents to be "
            "drawn would be read, and copying them teaches nothing; set unified.understanding="
            "features, or leave the task out"
        )


def _reads_task(stage: str, config: Config, task: str) -> bool:
    """Whether the stage's mixture, or one of its sources, has a share of the task."""
    own = [s for s in config["data"]["sources"] if stage in (s["stages"] or (stage,))]
    return any(tasks.get(task) for tasks in (config[stage]["mixture"], *(s["tasks"] for s in own)))


def _check_encoder(config: Config) -> None:
    for tower in ("vision", "text"):
        _divides(config, f"encoder.{tower}.heads", f"encoder.{tower}.width")


def _check_autoencoder(config: Config) -> None:
    own, patch, policy = config["autoencoder"], config["data"]["patch"], config["data"]["policy"]
    widths, groups, adversary = own["widths"], own["norm_groups"], own["discriminator"]
    factor = 2 ** (len(widths) - 1)
    if patch % factor:
        raise ConfigError(
            f"autoencoder.widths={tuple(widths)} reduces pictures by {factor}, which does not "
            f"divide data.patch={patch}; give fewer widths or a larger patch"
        )
    if policy == "naflex":
        raise ConfigError(
            "the stage autoencoder needs pictures of a few shapes, but data.policy=naflex allows "
            "any; set --config.data.policy=bucket"
        )
    if wrong := [width for width in widths if width % groups]:
        raise ConfigError(
            f"autoencoder.norm_groups={groups} does not divide {wrong[0]} of autoencoder.widths="
            f"{tuple(widths)}; take a common divisor"
        )
    if not own["perceptual_layers"]:
        raise ConfigError(
            "autoencoder.perceptual_layers=() compares nothing; give shares of the encoder's "
            "depth, (0.5,) for its middle layer"
        )
    if not adversary["weight"]:
        return
    if adversary["width"] % groups:
        raise ConfigError(
            f"autoencoder.norm_groups={groups} does not divide autoencoder.discriminator.width="
            f"{adversary['width']}; make the width a multiple of it"
        )
    if patch % 2 ** adversary["layers"]:
        raise ConfigError(
            f"autoencoder.discriminator.layers={adversary['layers']} halve the sides of a picture "
            f"that many times, but data.patch={patch} is not a multiple of "
            f"{2 ** adversary['layers']}; use fewer layers"
        )
    if adversary["adaptive"] and own["accumulate"] > 1:
        raise ConfigError(
            "autoencoder.discriminator.adaptive=True weighs losses of a whole batch; set "
            "autoencoder.accumulate=1, or adaptive=False"
        )


def _check_codec(config: Config) -> None:
    codec, width = config["codec"], config["encoder"]["vision"]["width"]
    if codec["compressor"] == "attention":
        wide, narrow = max(width, codec["latent_dim"]), min(width, codec["latent_dim"])
        heads = codec["compressor_heads"]
        if not heads and wide % narrow:
            raise ConfigError(
                f"codec.latent_dim={codec['latent_dim']} does not divide encoder.vision.width="
                f"{width}; take one of {_divisors(width)}, or set codec.compressor_heads"
            )
        if heads and wide % heads:
            raise ConfigError(
                f"codec.compressor_heads={heads} does not divide {wide} channels; take one of "
                f"{_divisors(wide)}"
            )
    elif codec["compressor_heads"]:
        raise ConfigError(
            f"codec.compressor_heads={codec['compressor_heads']} is for codec.compressor=attention;"
            " leave it 0"
        )
    if codec["pool"] > 1 and codec["compressor"] != "pool":
        raise ConfigError(
            f"codec.pool={codec['pool']} needs --config.codec.compressor=pool, not "
            f"{codec['compressor']}"
        )
    if codec["pool"] == 1 and codec["compressor"] == "pool":
        raise ConfigError("codec.compressor=pool needs --config.codec.pool=2 or more")
    if not codec["perceptual_layers"]:
        raise ConfigError(
            "codec.perceptual_layers=() compares nothing; give shares of the encoder's depth, "
            "(0.5,) for its middle layer"
        )
    if codec["decoder"]["kind"] == "dit":
        _divides(config, "codec.decoder.heads", "codec.decoder.width", unit=2)


def _check_unified(config: Config) -> None:
    unified = config["unified"]
    _divides(config, "unified.transformer.kv_heads", "unified.transformer.heads")
    if unified["transformer"]["head_dim"] % 2:
        raise ConfigError(
            f"unified.transformer.head_dim={unified['transformer']['head_dim']} is odd; rotary "
            "positions turn pairs of channels"
        )
    if config["codec"]["pool"] > 1 and unified["understanding"] == "channel_concat":
        raise ConfigError(
            "unified.understanding=channel_concat needs one latent for each patch: set "
            "codec.pool=1 or another understanding"
        )
    check_idle_options(config)
    check_tuned(config)
    if check := OF_FAMILY.get(unified["pathway"]):
        check(config)


# Options of which only some pathways make use. Sizes of parts that are not built may stand.
OPTIONS_OF = {
    "unified.head.kind": ("transfusion",),
    "unified.uae.decoder.init_from": ("uae",),
    "codec.init_from": ("transfusion", "query"),
    "codec.decoder.init_from": ("transfusion", "query"),
    **{
        f"unified.cheers.{name}": ("cheers",)
        for name, key in CHEERS.keys.items()
        if isinstance(key, Key)
    },
}


def check_idle_options(config: Config) -> None:
    """Refuses options of another pathway, but those that change no result."""
    own = config["unified"]["pathway"]
    for name, pathways in OPTIONS_OF.items():
        value, key = value_at(config, name), KEYS[name]
        if own not in pathways and key.resume != NEUTRAL and value != key.default:
            raise ConfigError(
                f"{name}={value} does nothing with unified.pathway={own}; leave it out, or set "
                f"unified.pathway to {' or '.join(pathways)}"
            )


def _check_query(config: Config) -> None:
    _divides(config, "unified.flow_decoder.heads", "unified.flow_decoder.width", unit=2)


# What a pathway does in one way only, and why.
ONLY = {
    "unified.understanding": ("features", "a picture is always read in one way"),
    "codec.pool": (1, "slots hold unified.fold latents on a side"),
}
UAE_ONLY = {
    **ONLY,
    "unified.prediction": ("velocity", "its drawer predicts velocities"),
    "unified.image_positions": ("mrope", "its reader is a Qwen2.5-VL"),
    "data.policy": ("fixed", "it reads and draws pictures of one size"),
}


def _check_one_way(config: Config, wanted: Mapping[str, tuple[Any, str]]) -> None:
    pathway = config["unified"]["pathway"]
    for key, (only, why) in wanted.items():
        if (value := value_at(config, key)) != only:
            raise ConfigError(
                f"{key}={value} with unified.pathway={pathway}: {why}; set it to {only}"
            )
    if config["unified"]["edit_source"] == "both":
        raise ConfigError(
            "unified.edit_source=both would read a picture twice in the same way with "
            f"unified.pathway={pathway}; set it to latents"
        )


def _check_uae(config: Config) -> None:
    _check_one_way(config, UAE_ONLY)
    # Rotary positions of the tower in two dimensions.
    _divides(config, "unified.uae.vision.heads", "unified.uae.vision.width", unit=4)


def _check_cheers(config: Config) -> None:
    _check_one_way(config, ONLY)
    over = config["unified"]["cheers"]["flow_over"]
    if over == "all" and config["unified"]["prediction"] != "velocity":
        raise ConfigError(
            "unified.cheers.flow_over=all needs velocities at t = 1, which unified.prediction="
            f"{config['unified']['prediction']} does not give; change one of the two"
        )
    limited = [s for s in config["stages"] if config[s].get("views_per_row")]
    if over == "all" and limited:
        raise ConfigError(
            f"{limited[0]}.views_per_row leaves pictures out, but unified.cheers.flow_over=all "
            "computes all of them; change one of the two"
        )
    widths = {"semantics": "unified.transformer.width", "details": "encoder.vision.width"}
    for stage, width in widths.items():
        heads = f"unified.cheers.{stage}.heads"
        _divides(config, heads, width, unit=2)
        _divides(config, f"unified.cheers.{stage}.kv_heads", heads)


# What a family asks of a configuration besides, by `unified.pathway`.
OF_FAMILY: dict[str, Callable[[Config], None]] = {
    "query": _check_query,
    "cheers": _check_cheers,
    "uae": _check_uae,
}


def _divides(config: Config, part: str, whole: str, *, unit: int = 1) -> None:
    """`part` must divide `whole`, with a quotient that is a multiple of `unit`."""
    small, large = value_at(config, part), value_at(config, whole)
    if large % unit:
        raise ConfigError(f"{whole}={large} has to be a multiple of {unit}")
    if large % (small * unit):
        times = f" into multiples of {unit}" if unit > 1 else ""
        fits = _divisors(large // unit)
        raise ConfigError(
            f"{part}={small} does not divide {whole}={large}{times}; take one of {fits}"
        )


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def _check_stage(stage: str, settings: Config) -> None:
    if settings["spike_factor"] and settings["spike_factor"] <= 1:
        raise ConfigError(
            f"{stage}.spike_factor={settings['spike_factor']} would skip ordinary steps; give a "
            "larger multiple of the median, for example 10, or 0 to skip none"
        )
    if settings["ema_warmup"] and not settings["ema_decay"]:
        raise ConfigError(f"{stage}.ema_warmup=True needs an average; set {stage}.ema_decay")
    eval_every, save_every = settings["eval_every"], settings["save_every"]
    if settings["keep_best"] and (not eval_every or save_every % eval_every):
        raise ConfigError(
            f"{stage}.keep_best={settings['keep_best']} needs a held-out loss at every checkpoint; "
            f"set {stage}.eval_every to a divisor of save_every={save_every}"
        )
    if settings["batch_size"] % settings["accumulate"]:
        raise ConfigError(
            f"{stage}.batch_size={settings['batch_size']} cannot be split into "
            f"{stage}.accumulate={settings['accumulate']} equal parts; change one of them"
        )
    lora = settings.get("lora", {})
    if lora.get("rank") and not lora["targets"]:
        raise ConfigError(f"{stage}.lora.targets=() trains nothing; name layers, or set rank=0")
    patterns = {"freeze": settings["freeze"], "lora.targets": lora.get("targets", ())}
    for key, pattern in ((key, pattern) for key, some in patterns.items() for pattern in some):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{stage}.{key}: {pattern!r} is not a regular expression ({error})"
            ) from error


def _check_rewards(stage: str, settings: Config) -> None:
    """There is a reward, and what it needs is given."""
    if not any(settings["rewards"].values()):
        raise ConfigError(
            f"{stage}.rewards are all 0, so no sample is better than another; give one a weight"
        )
    own, path = settings["rewards"]["own"], settings["own_reward"]
    if bool(own) != bool(path):
        raise ConfigError(
            f"{stage}.rewards.own={own} with {stage}.own_reward={path!r}: give both, or neither"
        )
    if "window" in settings and settings["window"] >= settings["draw_steps"]:
        raise ConfigError(
            f"{stage}.window={settings['window']} does not fit before the last of "
            f"{stage}.draw_steps={settings['draw_steps']}; take fewer SDE steps, or draw in more"
        )
    if settings.get("least_tokens", 0) > settings.get("most_tokens", 0):
        raise ConfigError(
            f"{stage}.least_tokens={settings['least_tokens']} is above "
            f"{stage}.most_tokens={settings['most_tokens']}"
        )


def _check_rows(stage: str, settings: Config) -> None:
    if settings["batch_size"] % settings["window_rows"]:
        raise ConfigError(
            f"{stage}.window_rows={settings['window_rows']} does not divide "
            f"{stage}.batch_size={settings['batch_size']}; take one of "
            f"{_divisors(settings['batch_size'])}"
        )
    if not settings["flow_weight"] and not settings["text_weight"]:
        raise ConfigError(
            f"{stage}.flow_weight and text_weight are both 0, so nothing is learned; raise one of "
            "them"
        )
