"""Captioner and drawer from a configuration, and the table of rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from data_pipelines.build import sequence_config
from data_pipelines.scenes.agreement import score_caption
from data_pipelines.scenes.long_captions import score_long
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.config import ConfigError
from unicom_jax.core.flow_steps import SdeStep
from unicom_jax.inference.canvas import canvas_of
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.engine import Models
from unicom_jax.rl import rewards
from unicom_jax.rl.answers import CaptionAnswers
from unicom_jax.rl.captioner import Captioner
from unicom_jax.rl.drawer import Drawer, Window
from unicom_jax.rl.flow_objectives import Awm, FlowGrpo, FlowObjective, Nft
from unicom_jax.rl.joint import Joint
from unicom_jax.rl.policy import Clip
from unicom_jax.rl.rewards import Reward
from unicom_jax.rl.samples import Originals, Samples
from unicom_jax.rl.scores import Scoring
from unicom_jax.rl.template import Template, make_template
from unicom_jax.rl.text_objectives import TextObjective
from unicom_jax.runs.stages import EYE, START

Config = Mapping[str, Any]
# Rewards that use no drawing.
OF_WORDS = ("long_caption", "caption", "answers", "ended", "length")
WITHOUT_DRAWING = (*OF_WORDS, "random")


def build_captioner(name: str, config: Config, tokenizer: Tokenizer) -> Captioner:
    """The captioner of stage `name`."""
    settings = config[name]
    common = _common(name, config, tokenizer)
    wanted = {name for name, weight in settings["rewards"].items() if weight}
    return Captioner(
        **common,
        objective=TextObjective(
            Clip(settings["clip_low"], settings["clip_high"]), settings["length"]
        ),
        draws=bool(wanted - set(WITHOUT_DRAWING)),
    )


def build_drawer(name: str, config: Config, tokenizer: Tokenizer) -> Drawer:
    """The drawer of stage `name`.

    Raises:
      ConfigError: guidance with an objective that needs the likelihood.
    """
    settings = config[name]
    if settings["objective"] == "grpo" and settings["guidance"] != 1.0:
        raise ConfigError(
            f"{name}.guidance={settings['guidance']:g}: objective grpo can compute the likelihood "
            f"of drawings only without guidance; set {name}.guidance=1, or {name}.objective=nft "
            "or awm"
        )
    return Drawer(
        **_common(name, config, tokenizer),
        objective=OBJECTIVES[settings["objective"]](settings),
        times=settings["times"],
        window=Window(
            settings["window"],
            settings["window_stride"],
            settings["window_held"],
            SdeStep(settings["noise_level"]),
        ),
        true_captions=settings["captions"] != "own",
    )


def build_joint(name: str, config: Config, tokenizer: Tokenizer) -> Joint:
    """Captioner and drawer of stage `name`: the captioner has the rewards of words, the drawer the
    others.

    Raises:
      ConfigError: no reward uses drawings.
    """
    settings = config[name]
    rewards: dict[bool, dict[str, float]] = {True: {}, False: {}}
    for reward, weight in settings["rewards"].items():
        rewards[reward in OF_WORDS][reward] = weight
    if not any(rewards[False].values()):
        raise ConfigError(
            f"{name}.rewards: none uses drawings, so the drawer would learn nothing; give "
            f"another one a weight, such as {name}.rewards.cosine"
        )
    drawings = {
        "rewards": rewards[False],
        "group_size": settings["drawings"],
        "spread": settings["drawing_spread"],
        "gates": (),
        "captions": "own",
    }
    return Joint(
        build_captioner(name, _with(config, name, rewards=rewards[True]), tokenizer),
        build_drawer(name, _with(config, name, **drawings), tokenizer),
    )


def _with(config: Config, name: str, **changes: Any) -> Config:
    """A configuration with other settings of stage `name`."""
    return {**config, name: {**config[name], **changes}}


# By the setting `objective`.
OBJECTIVES: dict[str, Callable[[Config], FlowObjective]] = {
    "nft": lambda settings: Nft(beta=settings["beta"]),
    "awm": lambda settings: Awm(),
    "grpo": lambda settings: FlowGrpo(Clip(settings["clip"], settings["clip"])),
}


def _common(name: str, config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """The arguments that captioner and drawer have in common."""
    settings = config[name]
    template = make_template(config, tokenizer, settings["prompt"])
    models = models_of(config, template)
    images = models.unified.images
    weights = {name: float(weight) for name, weight in settings["rewards"].items() if weight}

    def made(names: Any) -> dict[str, Reward]:
        return {one: REWARDS[one](name, config, models, template, tokenizer) for one in names}

    return {
        "models": models,
        "template": template,
        "scoring": Scoring(
            rewards=made(weights),
            weights=weights,
            gates=made(settings.get("gates", ())),
            group=settings["group_size"],
            spread=settings["spread"],
            sum_of=settings["sum_of"],
            clip=settings["advantage_clip"],
        ),
        "group": settings["group_size"],
        "most": settings["max_tokens"],
        "drawing": Drawing(
            steps=settings["draw_steps"],
            guidance=settings["guidance"],
            shift=float(images.flow_time.shift_of(*images.shape_of(len(template.positions)))),
        ),
        "codec_steps": config["codec"]["sample_steps"],
    }


def models_of(config: Config, template: Template) -> Models:
    """The models of a run, for pictures of the template's size."""
    models = Models.of(config)
    canvas = canvas_of(template.grid, models.canvas, sequence_config(config))
    return models.on(canvas.space)


# ---- rewards ----------------------------------------------------------------------------------


def _cosine(
    name: str, config: Config, models: Models, template: Template, tokenizer: Tokenizer
) -> Reward:
    return rewards.FeatureCosine(models.vision, EYE)


def _latents(
    name: str, config: Config, models: Models, template: Template, tokenizer: Tokenizer
) -> Reward:
    def encode(frozen: Any, pixels: Any, grids: Any) -> Any:
        seen = pixels
        if models.codec.reads == "features":
            seen = models.vision(frozen[EYE], pixels.astype(config["compute_dtype"]), grids)
        return models.codec.encode(frozen["codec"], seen, grids)

    return rewards.LatentDistance(encode, models.codec.pool)


def _answers(
    name: str, config: Config, models: Models, template: Template, tokenizer: Tokenizer
) -> Reward:
    return CaptionAnswers(models.unified, template, START)


def _length(
    name: str, config: Config, models: Models, template: Template, tokenizer: Tokenizer
) -> Reward:
    return rewards.Length(config[name]["least_tokens"], config[name]["most_tokens"])


def _own(
    name: str, config: Config, models: Models, template: Template, tokenizer: Tokenizer
) -> Reward:
    path = config[name]["own_reward"]
    try:
        function = rewards.named(path)
    except ValueError as error:
        raise ConfigError(f"{name}.own_reward: {error}") from error

    def reward(frozen: Any, originals: Originals, samples: Samples) -> jax.Array:
        try:
            found = function(frozen, originals, samples)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(
                f"{name}.own_reward: {path} raised {type(error).__name__}: {reason}; "
                "UNICOM_TRACEBACK=1 shows where"
            ) from error
        shape = (originals.grids.shape[0],)
        if getattr(found, "shape", None) != shape:
            what = f"shape {found.shape}" if hasattr(found, "shape") else type(found).__name__
            raise ConfigError(
                f"{name}.own_reward: {path} returned {what}; return an array of shape {shape}, one "
                "number per sample"
            )
        return found

    return reward


def _correct(
    name: str, config: Config, models: Models, template: Template, tokenizer: Tokenizer
) -> Reward:
    return rewards.CaptionDrawn(tokenizer.decode, config["data"]["patch"])


def _long_caption(
    name: str, config: Config, models: Models, template: Template, tokenizer: Tokenizer
) -> Reward:
    return rewards.CaptionFacts(tokenizer.decode, config["data"]["patch"], score_long)


def _caption(
    name: str, config: Config, models: Models, template: Template, tokenizer: Tokenizer
) -> Reward:
    return rewards.CaptionFacts(tokenizer.decode, config["data"]["patch"], score_caption)


# By name in the settings' `rewards`: (stage, configuration, models, template, tokenizer) -> reward.
REWARDS: dict[str, Callable[..., Reward]] = {
    "cosine": _cosine,
    "pixels": lambda *how: rewards.pixel_distance,
    "latents": _latents,
    "scenes": lambda name, config, *how: rewards.ScenesJudge(config["data"]["patch"]),
    "correct": _correct,
    "own": _own,
    "random": lambda *how: rewards.by_chance,
    "long_caption": _long_caption,
    "caption": _caption,
    "answers": _answers,
    "ended": lambda *how: rewards.ended,
    "length": _length,
}
