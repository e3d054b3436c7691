"""Sizes and switches of a UniCom model."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class UnicomConfig(PretrainedConfig):
    """Each section holds the arguments of one part of `UnicomModel`.

    Attributes:
      vision: `VisionTransformer`, the SigLIP 2 image tower.
      language: `LanguageModel`, a decoder of the Qwen family.
      codec: how features become latents: compressor (attention, mlp, pool or identity),
        feature_dim, latent_dim, heads and window.
      pixel_decoder: `kind` "dit" with the arguments of `DiffusionTransformer`, or "flux" or
        "sd3" with those of `FluxDecoder` or `SD3Decoder`.
      autoencoder: the configuration of the diffusers autoencoder whose latents the pixel
        decoder paints; None: it paints pixels.
      pathway: `kind` "transfusion" with its `head` and what that predicts ("velocity" or the clean
        "data"), or "query" with `queries`, `connector_depth`
        and `flow_decoder`.
      sequence: how words and pictures are written: understanding, edit_source, pool and the turn's
        template prompt_open, prompt_close, response_close.
      run: the configuration and the steps of the training run, for the way back to JAX.
      image_token_id: of `<|image_pad|>`, which stands for a slot of a picture.
      hidden_size, vocab_size, num_hidden_layers, ...: of the language model, under the names that
        tools look for; they follow from `language`.
    """

    model_type = "unicom"
    keys_to_ignore_at_inference = ("past_key_values",)
    # transformers' name: ours
    LANGUAGE_SIZES = {
        "hidden_size": "width",
        "vocab_size": "vocab_size",
        "intermediate_size": "mlp_dim",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "head_dim": "head_dim",
    }

    def __init__(
        self,
        vision: dict[str, Any] | None = None,
        language: dict[str, Any] | None = None,
        codec: dict[str, Any] | None = None,
        pixel_decoder: dict[str, Any] | None = None,
        autoencoder: dict[str, Any] | None = None,
        pathway: dict[str, Any] | None = None,
        sequence: dict[str, Any] | None = None,
        run: dict[str, Any] | None = None,
        image_token_id: int | None = None,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        for theirs, ours in self.LANGUAGE_SIZES.items():
            kwargs[theirs] = (language or {}).get(ours)
        kwargs["tie_word_embeddings"] = (language or {}).get("tied_head", False)
        super().__init__(**kwargs)
        self.image_token_id, self.use_cache = image_token_id, use_cache
        self.vision = vision or {}
        self.language = language or {}
        self.codec = codec or {}
        self.pixel_decoder = pixel_decoder or {}
        self.autoencoder = autoencoder
        self.pathway = pathway or {}
        self.sequence = sequence or {}
        self.run = run or {}


class UnicomCheersConfig(UnicomConfig):
    """That of `UnicomCheersModel`; transformers remembers one model for each class."""

    model_type = "unicom_cheers"

    # Without it, transformers 5 would make one that does not call UnicomConfig's.
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class UnicomUaeConfig(UnicomConfig):
    """That of `UnicomUaeModel`.

    Attributes:
      vision: arguments of `QwenVision`.
      codec: latent_dim, the value `darkest` of black for the autoencoder, and the pixels on a side
        of a patch.
      pathway: `decoder` has the arguments of `SD3Decoder`.
    """

    model_type = "unicom_uae"

    # See `UnicomCheersConfig`.
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
