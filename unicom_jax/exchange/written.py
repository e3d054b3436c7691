"""The files of an exported folder: of a whole model with its code, or of a part for a class of
transformers or diffusers.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from flax import traverse_util

from data_pipelines.build import grid_unit, image_policy
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.config import KEYS
from unicom_jax.core.module import Module, Params
from unicom_jax.exchange.code import SOURCES, code_of
from unicom_jax.exchange.model_card import model_card
from unicom_jax.exchange.parts import Part
from unicom_jax.interop.folders import fill_folder
from unicom_jax.interop.layouts import exported, qwen_vl, siglip
from unicom_jax.interop.layouts.layout import DIFFUSERS, LAYOUTS, Layout
from unicom_jax.interop.layouts.unicom import describe_sequence
from unicom_jax.interop.pytorch.sequence_unicom import Format
from unicom_jax.interop.transfer import store_weights
from unicom_jax.models.qwen_vl import QwenVL
from unicom_jax.models.transformer import Transformer
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.runs import weights

AUTO_MODELS = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForMultimodalLM",
)
PROCESSOR = {"AutoProcessor": "processing_unicom.UnicomProcessor"}
# Where transformers keeps chat templates other than the default one.
GIVEN_TEMPLATE = Path("additional_chat_templates", "original.jinja")
# safetensors' name, torch's
DTYPES = {"fp32": ("F32", "float32"), "bf16": ("BF16", "bfloat16"), "fp16": ("F16", "float16")}


@dataclasses.dataclass(frozen=True)
class Options:
    """How a model is written.

    Attributes:
      to: "pytorch" (the whole model), "peft" (adapters), or a part in its native layout: a key of
        `PARTS`.
      dtype: a key of `DTYPES`.
      shard_bytes: the most bytes per file of weights.
      choice: which weights; by default those that the run itself uses.
      overwrite: replace an earlier export.
    """

    to: str = "pytorch"
    dtype: str = "fp32"
    shard_bytes: int = 5 * 10**9
    choice: weights.Choice = weights.IN_USE
    overwrite: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run to be exported: its folder, configuration, weights, and modules by tree."""

    workdir: Path
    choice: weights.Choice
    config: Mapping[str, Any]
    tokenizer: Tokenizer
    params: Mapping[str, Params]
    modules: Mapping[str, Module]

    @property
    def steps(self) -> dict[str, tuple[str, int]]:
        """The stage that each tree of weights comes from, and its steps."""
        return weights.steps_in_use(self.workdir, self.choice.step)


# ---- the whole model --------------------------------------------------------------------------


def write_model(run: Run, module: exported.Model, folder: Path, options: Options) -> None:
    """Everything that `AutoModel.from_pretrained(folder, trust_remote_code=True)` needs."""
    table, twin = exported.table(module), exported.twin_of(run.config)
    description = _describe(run, module, options)
    _write_json(folder / "config.json", description)
    _write_json(folder / "preprocessor_config.json", _describe_images(run.config))
    sequence = description["sequence"]
    _write_json(folder / "processor_config.json", _describe_processor(sequence))
    _write_json(folder / "generation_config.json", _describe_generation(run, module))
    _write_tokenizer(run, sequence, folder)
    for name in code_of(twin):
        shutil.copyfile(SOURCES / name, folder / name)
    card = model_card(run.workdir, run.config, module, run.steps, options.choice)
    (folder / "README.md").write_text(card, encoding="utf-8")
    store_weights(
        folder,
        table,
        module.specs(),
        run.params,
        dtype=DTYPES[options.dtype][0],
        kept=exported.kept_in_fp32(module),
        shard_bytes=options.shard_bytes,
    )


def _describe(run: Run, module: exported.Model, options: Options) -> dict[str, Any]:
    dtype, twin = DTYPES[options.dtype][1], exported.twin_of(run.config)
    return {
        "architectures": [twin.name],
        "model_type": twin.model_type,
        "auto_map": {
            "AutoConfig": f"configuration_unicom.{twin.config}",
            **dict.fromkeys(AUTO_MODELS, f"{twin.file}.{twin.name}"),
            **PROCESSOR,
        },
        "hidden_size": module.unified.transformer.width,
        "vocab_size": module.unified.transformer.vocab_size,
        "image_token_id": run.tokenizer.image_pad,
        "dtype": dtype,
        "torch_dtype": dtype,  # used by transformers 4
        **exported.describe(module, run.config),
        "run": {"config": without_places(run.config), "steps": run.steps},
    }


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with its file and folder names, but without their locations."""
    flat = traverse_util.flatten_dict(
        json.loads(json.dumps(config)), sep=".", keep_empty_nodes=True
    )
    for key, value in flat.items():
        declared = KEYS.get(key)
        if isinstance(value, str) and declared is not None and declared.path:
            flat[key] = PurePath(value).name
    return traverse_util.unflatten_dict(flat, sep=".")


def _describe_processor(sequence: Mapping[str, Any]) -> dict[str, Any]:
    return {"processor_class": "UnicomProcessor", "auto_map": PROCESSOR, "sequence": sequence}


def _write_tokenizer(run: Run, sequence: Mapping[str, Any], folder: Path) -> None:
    """The tokenizer with the chat template of the format that the model was trained with.

    A template that was given to the run is kept beside it under the name "original".
    """
    details = {k: v for k, v in run.tokenizer.details.items() if k != "chat_template"}
    details["padding_side"] = "left"  # `generate` continues all rows at their end
    dataclasses.replace(run.tokenizer, details=details).save(folder)
    template = Format(**sequence).chat_template()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if isinstance(given := run.tokenizer.details.get("chat_template"), str):
        path = folder / GIVEN_TEMPLATE
        path.parent.mkdir()
        path.write_text(given, encoding="utf-8")


def _describe_images(config: Mapping[str, Any]) -> dict[str, Any]:
    policy = image_policy(config)
    return {
        "image_processor_type": "UnicomImageProcessor",
        "auto_map": {"AutoImageProcessor": "image_processing_unicom.UnicomImageProcessor"},
        "policy": policy.kind,
        "size": policy.size,
        "patch": config["data"]["patch"],
        "pool": grid_unit(config),
        "max_tokens": policy.max_tokens,
        "step": policy.step,
        "max_ratio": policy.max_ratio,
    }


def _describe_generation(run: Run, module: exported.Model) -> dict[str, Any]:
    sample = run.config["sample"]
    return {
        **_describe_stops(run),
        "flow_steps": sample["steps"],
        "guidance": sample["guidance"],
        "guidance_interval": list(sample["guidance_interval"]),
        "sampler": sample["sampler"],
        "flow_grid": sample["grid"],
        "edit_start": sample["edit_start"],
        "flow_shift": module.unified.images.flow_time.shift,
        "codec_steps": run.config["codec"]["sample_steps"],
        "image_size": run.config["data"]["image_size"],
    }


def _describe_stops(run: Run) -> dict[str, Any]:
    """Where generated text ends, which is all that a language model alone needs."""
    tokenizer = run.tokenizer
    return {
        "max_new_tokens": run.config["sample"]["max_tokens"],
        "eos_token_id": [tokenizer.end_of_document, tokenizer.turn_end, tokenizer.vision_start],
        "pad_token_id": tokenizer.end_of_document,
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# ---- parts alone ------------------------------------------------------------------------------


def fill(
    folder: Path,
    layout: Layout,
    module: Module,
    params: Params,
    options: Options,
    about: Mapping[str, Any] | None = None,
) -> None:
    """`about`: further entries of config.json."""
    dtype, torch_dtype = DTYPES[options.dtype]
    about = dict(about or {})
    if layout.stem != DIFFUSERS:  # whose classes refuse keys that are not their arguments
        about["dtype"] = torch_dtype
    fill_folder(
        folder,
        layout,
        module,
        params,
        dtype=dtype,
        shard_bytes=options.shard_bytes,
        about=about,
    )


def write_part(run: Run, part: Part, folder: Path, options: Options) -> None:
    """Writes one part in a form that transformers or diffusers loads."""
    (module, path, _), params = part.find(run.modules), run.params
    for name in path:
        params = params[name]
    about = {}
    if isinstance(module, QwenVL):
        module = dataclasses.replace(module, picture_token=run.tokenizer.image_pad)
        about = _write_reader_files(run, module, folder)
    fill(folder, LAYOUTS[part.layout], module, params, options, about)
    if isinstance(module, Transformer):
        run.tokenizer.save(folder)
        _write_json(folder / "generation_config.json", _describe_stops(run))
    if isinstance(module, VisionEncoder):
        data = run.config["data"]
        most = image_policy(run.config).max_patches(data["patch"], grid_unit(run.config))
        images = siglip.describe_images(module, most)
        _write_json(folder / "preprocessor_config.json", images)


def _write_reader_files(run: Run, module: QwenVL, folder: Path) -> dict[str, int]:
    """What a Qwen2.5-VL needs besides its weights. Returns entries of its config.json.

    Pictures of the sizes that the run was trained with keep them; others get about as many pixels.
    """
    _write_tokenizer(run, describe_sequence(run.config), folder)
    _write_json(folder / "generation_config.json", _describe_stops(run))
    patches = (run.config["data"]["image_size"] // run.config["data"]["patch"]) ** 2
    images = qwen_vl.describe_images(module.vision, patches)
    _write_json(folder / "preprocessor_config.json", images)
    marks = run.tokenizer.vision_start, run.tokenizer.vision_end
    return dict(zip(("vision_start_token_id", "vision_end_token_id"), marks, strict=True))
