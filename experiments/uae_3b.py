"""UAE at its released sizes: Qwen2.5-VL-3B, connector 2048 → 8192 → 4096, SD3.5 large.

    unicom train --config=experiments/uae_3b.py --workdir=runs/uae_3b

Result: never run; the tests build it without weights and check sizes and counts (arXiv 2509.09666
and its published code). docs/plan.md has the plan for 64 H100 and 64 TPU v5p. It has 12,035 million
weights, 84 of them in the frozen autoencoder. It needs:

- `unified.init_from`: the folder of Qwen/Qwen2.5-VL-3B-Instruct, language model and image tower.
- `unified.uae.decoder.init_from`: the folder `transformer` of
  stabilityai/stable-diffusion-3.5-large.
- `autoencoder.init_from`: the folder `vae` of the same model. Without it, put the stage
  `autoencoder` first in `stages`: it trains one.
- `data.source.path`: ArrayRecord files of pictures with long captions (the paper: 700,000 of 250
  words and more).
- `data.tokenizer`: a folder with the tokenizer of Qwen2.5-VL.

The stage `longcap` is the paper's pre-training of the decoder: flow matching on long captions, the
language model frozen. From the paper: all sizes, 1024² pixels, 40 steps with guidance 5. It prints
neither learning rate nor steps nor batch; those are our own, and so are:
- Rows of 2048 slots with one document: a caption of up to 1000 tokens, and the 1024 slots of the
  drawn picture, which hold nothing and are seen by nobody.
- The empty prompt in a tenth of the documents, for guidance.
- Pictures of 1024² are read as 64 × 64 patches of 14 pixels (896²), so that reader and drawer have
  the same patches; Qwen2.5-VL itself would take 73 × 73.

g4u and u4g (docs/rl.md) continue from it; the paper's captioner has adapters of rank 32, alpha 64:
`--config.stages=longcap,g4u,u4g --config.g4u.lora.rank=32 --config.g4u.lora.alpha=64`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.stages = ("longcap",)
    config.mesh = "data=-1,fsdp=16"
    config.compute_dtype = "bfloat16"
    _data(config)
    config.autoencoder.update(
        {
            "latent_channels": 16,
            "widths": (128, 256, 512, 512),
            "resnets": 2,
            "norm_groups": 32,
            "quant_conv": False,
            "attention_backend": "chunked",
        }
    )
    _unified(config)
    _stage(config)
    config.sample.update({"steps": 40, "guidance": 5.0, "max_tokens": 1000})
    config.evaluation.update({"prompts": 64, "pictures": 512, "batch_size": 8})
    return config


def _data(config: ConfigDict) -> None:
    config.data.source.update({"kind": "array_record", "path": "data/uae"})
    config.data.update(
        {
            "policy": "fixed",
            "image_size": 1024,
            "patch": 16,
            "tokenizer": "tokenizers/qwen2.5-vl-3b-instruct",
            "vocab_size": 151_936,
            "padded_vocab_size": 151_936,
            "prompt_open": "<|im_start|>user\n",
            "prompt_close": "<|im_end|>\n<|im_start|>assistant\n",
            "response_close": "<|im_end|>",
            "workers": 16,
            "prefetch": 32,
        }
    )


def _unified(config: ConfigDict) -> None:
    config.unified.update({"pathway": "uae", "fold": 2, "text_chunk": 256})
    config.unified.update({"init_from": "qwen2.5-vl-3b-instruct", "image_positions": "mrope"})
    shared = {"remat": "full", "attention_backend": "fused"}
    config.unified.transformer.update(
        {
            "width": 2048,
            "depth": 36,
            "heads": 16,
            "kv_heads": 2,
            "head_dim": 128,
            "mlp_dim": 11_008,
            "rope_theta": 1e6,
            "rope_sections": (16, 24, 24),
            **shared,
        }
    )
    uae = config.unified.uae
    uae.vision.update(
        {
            "width": 1280,
            "depth": 32,
            "heads": 16,
            "mlp_dim": 3420,
            "whole_layers": (7, 15, 23, 31),
            "patch_size": 14,
            "window_size": 112,
            **shared,
        }
    )
    uae.decoder.update(
        {
            "init_from": "stable-diffusion-3.5-large/transformer",
            "depth": 38,
            "dual_depth": 0,
            "heads": 38,
            "head_dim": 64,
            "context_dim": 4096,
            "pooled_dim": 2048,
            "position_side": 192,
            **shared,
        }
    )


def _stage(config: ConfigDict) -> None:
    config.longcap.update(
        {
            "batch_size": 128,
            "sequence_length": 2048,
            "images_per_row": 1,
            "overlong": "skip",
            "cfg_dropout": 0.1,
            "learning_rate": 1e-5,
            "schedule": "constant",
            "steps": 50_000,
            "warmup_steps": 1000,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
            "log_every": 50,
            "save_every": 1000,
            "keep_every": 10_000,
        }
    )
