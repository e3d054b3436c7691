"""UniCom: one transformer reads words and pictures and draws compressed continuous latents.

picture -> vision_model -> features -> compressor -> latents       language_model reads both
words + noise -> language_model -> velocity -> ... -> latents -> decompressor -> pixel_decoder

from transformers import AutoModel
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
model.caption(picture); model.draw("a red circle"); model.edit(picture, "make it blue")

It also is a causal language model of transformers, with `forward`, `generate` and pipelines.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import ModelOutput, cached_file

from .configuration_unicom import UnicomConfig
from .image_processing_unicom import UnicomImageProcessor
from .modeling_unicom_codec import (
    AutoencoderSpace,
    DiffusionTransformer,
    LatentStatistics,
    make_autoencoder,
    make_projections,
)
from .modeling_unicom_flow import data_to_velocity
from .modeling_unicom_flux import FluxDecoder
from .modeling_unicom_generation import Generation
from .modeling_unicom_language import LanguageModel, interval_mask
from .modeling_unicom_layers import Attention
from .modeling_unicom_pathway import ImageEmbedding, make_head
from .modeling_unicom_vision import Encoder, VisionTransformer
from .processing_unicom import UnicomProcessor
from .sequence_unicom import Role

Grid = tuple[int, int]
# What says where a model comes from, to be passed on for the files beside its weights.
SOURCE_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip


@dataclasses.dataclass
class UnicomOutput(ModelOutput):
    """What `UnicomModel.forward_slots` gives.

    Attributes:
      logits: (B, S, vocab_size) fp32 scores of the next word.
      velocity: (B, S, latent_dim) fp32, to be read at slots that hold noisy latents; None where
        the pathway draws with a decoder of its own.
      hidden_states: (B, S, W) after the final norm.
    """

    logits: Tensor | None = None
    velocity: Tensor | None = None
    hidden_states: Tensor | None = None


class UnicomModel(Generation, PreTrainedModel, GenerationMixin):
    """All parts of a model. `Generation` has what one does with it, `Standard` what tools ask for.

    The codec, flow times and the flow head stay in fp32 whatever type the model is loaded in.
    """

    config_class = UnicomConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    _no_split_modules = ("DecoderLayer", "EncoderLayer", "DiffusionBlock")
    _keep_in_fp32_modules_strict = (
        "compressor", "decompressor", "statistics", r"^autoencoder\.", r"^head\.",
        r"^embedding\.time\.", r"^flow_decoder\.time\.",
    )  # fmt: skip
    # How many batches an autoencoder's statistics are of; nothing reads it.
    _keys_to_ignore_on_load_missing = (r"\.num_batches_tracked$",)
    _skip_keys_device_placement = ("past_key_values", "cache")
    _tied_weights_keys = {
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: UnicomConfig) -> None:
        super().__init__(config)
        codec, pathway = config.codec, config.pathway
        self.vision_model = VisionTransformer(**config.vision)
        self.compressor, self.decompressor = make_projections(**codec)
        self.statistics = LatentStatistics(codec["latent_dim"])
        self.pixel_decoder = make_pixel_decoder(**config.pixel_decoder)
        self.autoencoder = make_autoencoder(config.autoencoder) if config.autoencoder else None
        self.language_model = LanguageModel(**config.language)
        width = config.language["width"]
        self.embedding = ImageEmbedding(
            codec["feature_dim"], codec["latent_dim"], width, config.sequence["understanding"]
        )
        if pathway["kind"] == "transfusion":
            self.head = make_head(width=width, latent_dim=codec["latent_dim"], **pathway["head"])
        else:  # the frozen language model reads, a decoder of its own draws
            self.head = None
            self.queries = nn.Embedding(pathway["queries"], width)
            sizes = width, config.language["heads"], 4 * width
            self.connector = Encoder(pathway["connector_depth"], *sizes)
            self.flow_decoder = DiffusionTransformer(**pathway["flow_decoder"])
        self.loss_type = "ForCausalLM"
        for module in self.modules():
            if isinstance(module, Attention):
                module.config = config
        if config.pixel_decoder["kind"] == "dit":  # FLUX is large, and trained in bfloat16
            self._keep_in_fp32_modules_strict = (
                *self._keep_in_fp32_modules_strict,
                r"^pixel_decoder\.",
            )
        self.post_init()

    # ---- what transformers asks of every model ----------------------------------------------

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **options: Any
    ):
        """As in transformers, with the processor of the same folder, revision and subfolder."""
        name = pretrained_model_name_or_path
        found = super().from_pretrained(name, *args, **options)
        model = found[0] if isinstance(found, tuple) else found
        shared = {key: options[key] for key in SOURCE_OPTIONS if key in options}
        model._processor = model._read_processor(name, shared)
        return found

    def _read_processor(
        self, name: str | os.PathLike | None, source: dict[str, Any]
    ) -> UnicomProcessor | None:
        """The processor from where the model came from; None where only weights are there."""
        files = ("tokenizer_config.json", "preprocessor_config.json")
        if name is None or not all(has_file(name, file, **source) for file in files):
            return None
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **source)
        images = UnicomImageProcessor.from_pretrained(name, **source)
        return UnicomProcessor(
            images, tokenizer, chat_template=tokenizer.chat_template, sequence=self.config.sequence
        )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **options: Any):
        """As in transformers, with the processor: a complete folder. A model that came
        from no folder has none; its weights are saved alone."""
        super().save_pretrained(save_directory, *args, **options)
        if self._processor and options.get("is_main_process", args[0] if args else True):
            self.processor.save_pretrained(save_directory)
            self.processor.image_processor.save_pretrained(save_directory)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """A tied head scores words with it, too."""
        self.language_model.model.embed_tokens = value
        if self.config.tie_word_embeddings:
            self.language_model.lm_head.weight = value.weight

    def get_output_embeddings(self) -> nn.Linear:
        return self.language_model.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.language_model.lm_head = value

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """The embeddings as they are: the vocabulary is that of the run.

        Raises:
          ValueError: another size is asked for.
        """
        table = self.get_input_embeddings()
        rows = table.num_embeddings
        wanted = rows if new_num_tokens is None else new_num_tokens
        if wanted != rows or rows % (pad_to_multiple_of or 1):
            raise ValueError(
                f"this model has {rows} words and keeps them, so that it can go back to the run it "
                "came from; train with another data.vocab_size to have more"
            )
        return table

    # ---- pictures ---------------------------------------------------------------------------

    def look(self, patches: Tensor, grid: Grid) -> Tensor:
        """Features (B, N, D) of patches (B, N, P * P * 3) in -1..1."""
        return self.vision_model(patches.to(self.dtype), grid)

    def compress(self, features: Tensor, grid: Grid) -> Tensor:
        """Normalised latents (B, n, d) fp32 of features (B, N, D)."""
        return self.statistics(self.compressor(features, grid))

    def decompress(self, latents: Tensor, grid: Grid) -> Tensor:
        """Features (B, N, D) fp32 of normalised latents (B, n, d)."""
        return self.decompressor(self.statistics(latents, restore=True), grid)

    # ---- a prepared sequence ----------------------------------------------------------------

    def forward_slots(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        intervals: Tensor | None = None,
        roles: Tensor | None = None,
        features: Tensor | None = None,
        latents: Tensor | None = None,
        time: Tensor | None = None,
        places: Tensor | None = None,
    ) -> UnicomOutput:
        """One pass over whole rows, as in training; gradients flow.

        Args:
          input_ids: (B, S), anything at image slots.
          positions: (B, S, 2) rotary (y, x); None: those of plain text.
          intervals: (B, S, 4), see `interval_mask`; None: causal.
          roles: (B, S), what each slot holds (`Role`); None: words only.
          features: (B, S, D) encoder features at each slot, `latents` (B, S, d) normalised latents,
            noisy ones where the role is NOISY; `time` (B, S) their flow time, 1 for clean ones;
            `places` (B, S, 2) their row and column. All are needed where `roles` is given.
        """
        hidden = self.language_model.embed(input_ids)
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        if positions is None:
            positions = index[:, None].expand(*input_ids.shape, 2)
        if intervals is None:
            zero = torch.zeros_like(index)
            intervals = torch.stack([zero, index + 1, zero, zero], -1).expand(*input_ids.shape, 4)
        if roles is not None:
            image = self.embedding(
                (roles == Role.UNDERSTAND)[..., None], features, latents, time, places, hidden.dtype
            )
            hidden = torch.where((roles > Role.TEXT)[..., None], image, hidden)
        mask = interval_mask(intervals, input_ids.shape[1])
        hidden = self.language_model(hidden, positions, mask)
        velocity = None
        if self.head is not None and time is not None:
            velocity = self.head_velocity(hidden, latents, time)
        return UnicomOutput(self.language_model.logits(hidden), velocity, hidden)

    def head_velocity(self, hidden: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """Velocity (B, S, d) of hidden states (B, S, W) at noisy latents (B, S, d), time (B, S)."""
        prediction = self.head(hidden, time)
        if self.config.pathway["prediction"] == "velocity":
            return prediction
        return data_to_velocity(prediction, noisy, time)

    @property
    def space(self) -> AutoencoderSpace | None:
        """What the pixel decoder paints in; None: pixels."""
        if self.autoencoder is None:
            return None
        return AutoencoderSpace(self.autoencoder, self.config.vision["patch"])


def has_file(name: str | os.PathLike, file: str, **source: Any) -> bool:
    """Whether a folder or a repository of the Hub holds a file; `source`: see SOURCE_OPTIONS."""
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **source)
    return found is not None


def make_pixel_decoder(kind: str, **sizes: Any) -> nn.Module:
    """The pixel decoder named `kind`: "dit" or "flux"."""
    kinds = {"dit": DiffusionTransformer, "flux": FluxDecoder}
    if kind not in kinds:
        raise ValueError(f"pixel_decoder.kind {kind!r} is unknown to this version of the model")
    return kinds[kind](**sizes)
