"""What transformers requires of every model, whichever parts it has."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import cached_file

from .configuration_unicom import UnicomConfig
from .image_processing_unicom import UnicomImageProcessor
from .modeling_unicom_generation import Generation
from .modeling_unicom_layers import Attention
from .processing_unicom import UnicomProcessor

# Options of `from_pretrained` that locate a model; they apply to the files beside its weights too.
SOURCE_OPTIONS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip


class UnicomBase(Generation, PreTrainedModel, GenerationMixin):
    """Base of the models. `Generation` has a user's methods, `Standard` those of transformers.

    A model has a `language_model`, creates its parts in `__init__`, and then calls `finish`.
    """

    config_class = UnicomConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    # The number of batches behind an autoencoder's statistics; it is not used.
    _keys_to_ignore_on_load_missing = (r"\.num_batches_tracked$",)
    _skip_keys_device_placement = ("past_key_values", "cache")
    _tied_weights_keys = {
        "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
    }
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def finish(self) -> None:
        """Called once all parts exist."""
        self.loss_type = "ForCausalLM"
        for module in self.modules():
            if isinstance(module, Attention):
                module.config = self.config
        self.post_init()

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
        """The processor from the model's own folder; None if that holds only weights."""
        files = ("tokenizer_config.json", "preprocessor_config.json")
        if name is None or not all(has_file(name, file, **source) for file in files):
            return None
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **source)
        images = UnicomImageProcessor.from_pretrained(name, **source)
        return UnicomProcessor(
            images, tokenizer, chat_template=tokenizer.chat_template, sequence=self.config.sequence
        )

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **options: Any):
        """As in transformers, but with the processor, so that the folder is complete. A model
        that was not loaded from a folder has none; only its weights are saved."""
        super().save_pretrained(save_directory, *args, **options)
        if self._processor and options.get("is_main_process", args[0] if args else True):
            self.processor.save_pretrained(save_directory)
            self.processor.image_processor.save_pretrained(save_directory)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """A tied head uses the new weights, too."""
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


def has_file(name: str | os.PathLike, file: str, **source: Any) -> bool:
    """Whether a folder or a repository of the Hub holds a file; `source`: see SOURCE_OPTIONS."""
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **source)
    return found is not None
