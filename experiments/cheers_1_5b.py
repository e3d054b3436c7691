"""Cheers at its released sizes: FLUX.2's autoencoder, SigLIP 2 so400m, Qwen2.5-1.5B.

    unicom train --config=experiments/cheers_1_5b.py --workdir=runs/cheers_1_5b

Result: never run; the tests build it without weights and check sizes, counts and the recipe
(arXiv 2603.12793). It has 2571.3 million weights, 84 of them in the frozen autoencoder. Hardware:
the paper trains on 128 A100; docs/plan.md has the plan for 64 H100 and 64 TPU v5p. It needs:

- the encoder and the language model that `align` starts from:

      unicom import --config=experiments/cheers_1_5b.py --workdir=runs/cheers_1_5b \\
          --encoder=siglip2-so400m-patch16-512 --language=Qwen2.5-1.5B-Instruct

- `autoencoder.init_from`: the folder `vae` of FLUX.2. Without it, put the stage `autoencoder`
  first in `stages`: it trains one.
- `data.source.path`: ArrayRecord files, from `unicom data prepare`. Not all of the paper's data are
  public.
- `data.tokenizer`: a folder with the tokenizer of Qwen/Qwen2.5-1.5B-Instruct.

The stages align, pretrain, continue and sft are the paper's I to IV. From the paper: all sizes,
512² pixels, plain positions, t ~ U[0, 1] with the time hidden from the transformer, and for each
stage what is trained, learning rate, schedule, steps, batch, warm-up (.02 of the steps) and the
shares of understanding, generation and text; AdamW (.9, .95), eps 1e-8, no weight decay, clipping
at 1; `<no_mean>` in place of the words in a fifth of the drawing documents; sampling in 80 steps
with guidance 9.5.

Our own choices:
- Rows of 1024 slots. Two documents with a picture (256 slots each) fill about one row, so a batch
  of 512 samples is 256 rows.
- Two pictures per row for the image tokenizer, since these tasks either read a picture or draw it.
  The task `interleaved` and `noisy_copies` use one several times and need a higher `views_per_row`.
- How the share of understanding splits into our tasks.
- The shares of align: 4.5M captions, and 1.3M pictures to draw that are seen ten times.
- Pixels from 0 to 1, as for the released weights (`unified.cheers.pixel_range`); with an
  autoencoder and an encoder of your own, use "signed".

The paper's demonstration samples with α = .5, which is `unicom sample --shift=2`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base
from unicom_jax.families.cheers import FROZEN_AT_FIRST

# Shares of understanding, generation and text.
SHARES = {
    "align": (4.5 / 17.5, 13 / 17.5, 0.0),
    "pretrain": (0.3, 0.6, 0.1),
    "continue": (0.3, 0.6, 0.1),
    "sft": (0.5, 0.5, 0.0),
}


def get_config() -> ConfigDict:
    config = base.get_config()
    config.stages = ("align", "pretrain", "continue", "sft")
    config.mesh = "data=-1,fsdp=8"
    config.compute_dtype = "bfloat16"
    _data(config)
    _frozen(config)
    _unified(config)
    _stages(config)
    config.sample.update({"steps": 80, "guidance": 9.5, "edit_start": 0.1, "max_tokens": 512})
    config.evaluation.update({"prompts": 64, "pictures": 512, "batch_size": 16})
    return config


def _data(config: ConfigDict) -> None:
    config.data.source.update({"kind": "array_record", "path": "data/cheers"})
    config.data.update(
        {
            "policy": "fixed",
            "image_size": 512,
            "patch": 16,
            "tokenizer": "tokenizers/qwen2.5-1.5b-instruct",
            "vocab_size": 151_936,
            "padded_vocab_size": 151_936,
            "prompt_open": "<|im_start|>user\n",
            "prompt_close": "<|im_end|>\n<|im_start|>assistant\n",
            "response_close": "<|im_end|>",
            "unconditional": "masked",
            "workers": 16,
            "prefetch": 32,
        }
    )


def _frozen(config: ConfigDict) -> None:
    so400m = {"width": 1152, "depth": 27, "heads": 16, "mlp_dim": 4304}
    config.encoder.naflex = False
    config.encoder.vision.update({**so400m, "remat": "full", "attention_backend": "fused"})
    config.encoder.text.update({**so400m, "max_length": 64})
    config.autoencoder.update(
        {"latent_channels": 32, "widths": (128, 256, 512, 512), "resnets": 2, "norm_groups": 32}
    )
    config.autoencoder.attention_backend = "chunked"


def _unified(config: ConfigDict) -> None:
    config.unified.update({"pathway": "cheers", "fold": 2, "text_chunk": 256})
    config.unified.image_positions = "plain"
    config.unified.transformer.update(
        {
            "width": 1536,
            "depth": 28,
            "heads": 12,
            "kv_heads": 2,
            "head_dim": 128,
            "mlp_dim": 8960,
            "rope_theta": 1e6,
            "remat": "dots",
            "attention_backend": "fused",
        }
    )
    cheers = config.unified.cheers
    cheers.update({"pixel_range": "unit", "decoder_remat": True})
    shared = {"kv_heads": 2, "remat": "dots", "attention_backend": "fused"}
    cheers.semantics.update({"depth": 7, "heads": 12, **shared})
    cheers.details.update({"depth": 3, "heads": 16, **shared})


def _stages(config: ConfigDict) -> None:
    shared = {
        "batch_size": 256,
        "sequence_length": 1024,
        "images_per_row": 2,
        "views_per_row": 2,  # a picture is either read or drawn
        "overlong": "skip",
        "cfg_dropout": 0.2,
        "schedule": "constant",
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
        "log_every": 50,
        "save_every": 2500,
        "keep_every": 20_000,
    }
    for stage, (reading, drawing, text) in SHARES.items():
        config[stage].update(shared)
        config[stage].mixture.update(
            {
                "image_to_text": 0.5 * reading,
                "visual_qa": 0.5 * reading,
                "text_to_image": drawing,
                "text": text,
            }
        )
    config.align.update({"learning_rate": 1e-4, "steps": 30_000, "warmup_steps": 600})
    config.align.update({"flow_weight": 1.0, "freeze": FROZEN_AT_FIRST})
    config.pretrain.update({"learning_rate": 1e-4, "steps": 60_000, "warmup_steps": 1200})
    config["continue"].update({"learning_rate": 4e-5, "steps": 65_000, "warmup_steps": 1300})
    config.sft.update({"learning_rate": 2e-5, "steps": 30_000, "warmup_steps": 600})
    config.sft.update({"schedule": "cosine", "batch_size": 64})
    for stage in SHARES:
        config[stage].update({"flow_weight": 1.0, "text_weight": 1.0})
