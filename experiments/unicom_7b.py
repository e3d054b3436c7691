"""The paper's model: SigLIP 2 so400m, compressor 1152 → 64, Qwen2.5-7B, FLUX.1-dev, on a pod.

    unicom train --config=experiments/unicom_7b.py --workdir=runs/unicom_7b

Result: never run; the tests build it without weights and check sizes, counts and the recipe, and
`unicom plan` computes what it needs (docs/plan.md). Hardware: a multiple of 32 accelerators.
Weights are sharded over 32; further accelerators hold copies. In fp32 the unified model alone has
122 GB of weights, gradients and moments, the codec 192 GB. It needs:

- the frozen encoder, the language model that `align` starts from, and the transformer that the
  pixel decoder starts from. The paper never trains the encoder, so `stages` has no stage for it.

      unicom import --config=experiments/unicom_7b.py --workdir=runs/unicom_7b \\
          --encoder=siglip2-so400m-patch16-naflex --language=Qwen2.5-7B-Instruct \\
          --decoder=FLUX.1-dev/transformer

- `data.source.path`: ArrayRecord files, from `unicom data prepare`. The paper's data are not
  public.
- `codec.autoencoder.path`: the folder `vae` of black-forest-labs/FLUX.1-dev. A run reads the
  autoencoder's sizes from it when it starts; without them no decoder can be built.
- `data.tokenizer`: a folder with the tokenizer of Qwen/Qwen2.5-7B-Instruct. `<think>` and
  `</think>` are added to it; the embedding table has 152,064 rows, enough for both.

From the paper: all sizes, the two-layer projector, understanding from raw features, editing from
the clean latents, t ~ U[0, 1], and for each stage learning rate, schedule, warm-up, steps, weight
decay, loss weights and the four shares of the mixture; AdamW (.9, .95), eps 1e-6, clipping at 1;
for the codec 33 aspect buckets, batch 256 and 50,000 steps.

Our own choices, where the paper gives no value:
- Batch size and row length of the unified stages.
- How the shares split into our tasks (`IMAGE_TO_TEXT`, `IMAGE_TEXT_IMAGE`; shares count documents).
- The optimiser and the loss weights of the codec.
- No average of the weights (`--config.pretrain.ema_decay=0.9999` keeps one).
- How features enter FLUX: through two layers in place of T5, as in UniWorld-V1. Guidance is 1.

One departure from the paper, in the pixel decoder: the paper's paints 1024² pixels from 1024
feature tokens, ours paints one patch of 16 pixels per feature, on the encoder's own token grid. The
33 buckets around 1024² in steps of 64 therefore have half their size, around 512² in steps of 32.
They have the same aspect ratios and at most 1024 tokens, as many as encoder, compressor and unified
model are meant for. `--config.data.image_size=1024 --config.data.bucket_step=64` gives the paper's
pixels at four times its tokens, and then needs longer rows. `--config.data.policy=bucket_walk`
takes the 33 sizes of HunyuanImage 3.0 instead, from the paper's laboratory: both sides are
multiples of the step, from 2048 x 512 to 512 x 2048 around 1024².

Without FLUX: `--config.codec.decoder.kind=dit --config.codec.autoencoder.path=""` paints pixels
with a DiT of 2.0e9 weights.

Layout of the step, with the results of `unicom plan`:
- fsdp=32, no tensor axis: on 128 chips of v5p a device receives 39 GiB per step, .11 s over its
  links against 1.86 s of products. 3584 channels over 64 devices would be 56 rows each, not a
  multiple of the 16 of a bf16 tile; a TPU then all-reduces gradients, which moves twice the bytes.
- Rows of 4608 slots: the longest document fits, and attention over all pairs costs little more than
  half of what rows of 8192 need for the same tokens. A row holds up to four pictures of 972 to 1024
  tokens; the frozen encoder computes four per row, even if there are fewer.
- remat "dots" keeps the products with weights and the outputs of attention: on v5p the program
  executes 1.05 times the operations that the loss needs by visible pairs, with 34 GiB.
- attention "fused" keeps scores on the chip: memory traffic takes .20 s of a step on v5p, against
  .98 s with "chunked"; on H100 .38 s, against 3.57 s. Its kernels were compiled for both and have
  run on neither: compare the first steps with `chunked`.

Buckets or NaFlex: one policy serves all stages, so that a picture can be understood, edited and
drawn on the same grid. Buckets bound the shapes of what is drawn. They crop at most 6% of a side
(half the step between two ratios) of pictures up to 1 : 4, and more of longer ones. NaFlex
(`--config.data.policy=naflex`) crops nothing, which suits documents and charts; the encoder runs in
NaFlex mode either way.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base

# Shares of text-only, text-to-image, image-to-text and image-text-image documents (paper's table).
SHARES = {
    "align": (0.20, 0.00, 0.80, 0.00),
    "pretrain": (0.25, 0.45, 0.15, 0.15),
    "continue": (0.20, 0.40, 0.20, 0.20),
    "sft": (0.10, 0.20, 0.40, 0.30),
}
# How a share is split among tasks. Questions weigh as much as captions. Edits are what the paper
# evaluates; it says only that there are "some" plans before a picture and some turns.
IMAGE_TO_TEXT = {"image_to_text": 0.5, "visual_qa": 0.5}
IMAGE_TEXT_IMAGE = {
    "edit": 0.5,
    "several_images": 0.1,
    "think_then_draw": 0.2,
    "interleaved": 0.2,
}


def mixture(stage: str) -> dict[str, float]:
    """Weights of our tasks from the paper's shares of a stage."""
    text, drawing, reading, editing = SHARES[stage]
    weights = {"text": text, "text_to_image": drawing}
    weights |= {task: reading * part for task, part in IMAGE_TO_TEXT.items()}
    weights |= {task: editing * part for task, part in IMAGE_TEXT_IMAGE.items()}
    return weights


def get_config() -> ConfigDict:
    config = base.get_config()
    config.stages = ("codec", "align", "pretrain", "continue", "sft")
    config.mesh = "data=-1,fsdp=32"
    config.compute_dtype = "bfloat16"
    _data(config)
    _encoder(config)
    _codec(config)
    _unified(config)
    _stages(config)
    config.sample.update({"steps": 50, "guidance": 4.0, "max_tokens": 512})
    config.evaluation.update({"prompts": 64, "pictures": 512, "batch_size": 16})
    return config


def _data(config: ConfigDict) -> None:
    config.data.source.update({"kind": "array_record", "path": "data/unicom"})
    config.data.update(
        {
            "policy": "bucket",
            "image_size": 512,
            "bucket_step": 32,
            "tokenizer": "tokenizers/qwen2.5-7b-instruct",
            "vocab_size": 152_064,
            "padded_vocab_size": 152_064,
            "prompt_open": "<|im_start|>user\n",
            "prompt_close": "<|im_end|>\n<|im_start|>assistant\n",
            "response_close": "<|im_end|>",
            "workers": 16,
            "prefetch": 32,
        }
    )


def _encoder(config: ConfigDict) -> None:
    so400m = {"width": 1152, "depth": 27, "heads": 16, "mlp_dim": 4304}
    config.encoder.naflex = True
    config.encoder.vision.update(so400m)
    config.encoder.vision.attention_backend = "fused"
    config.encoder.text.update({**so400m, "max_length": 64})


def _codec(config: ConfigDict) -> None:
    config.codec.update(
        {
            "compressor": "attention",
            "latent_dim": 64,
            "steps": 50_000,
            "batch_size": 256,
            "learning_rate": 1e-4,
            "warmup_steps": 1000,
            "weight_decay": 0.0,
            "perceptual_weight": 0.1,
            "statistics_batches": 200,
            "sample_steps": 25,
            "log_every": 50,
            "save_every": 2500,
        }
    )
    config.codec.autoencoder.path = "flux.1-dev/vae"
    config.codec.decoder.kind = "flux"
    config.codec.decoder.flux.update(
        {
            "channels": 64,
            "double_depth": 19,
            "single_depth": 38,
            "heads": 24,
            "head_dim": 128,
            "context_dim": 4096,
            "pooled_dim": 768,
            "guidance_embeds": True,
            "rope_dims": (16, 56, 56),
            "remat": "full",
            "attention_backend": "fused",
        }
    )
    config.codec.decoder.update(  # for kind "dit": the size of JiT-G (Li & He 2025)
        {
            "width": 1664,
            "depth": 40,
            "heads": 16,
            "mlp_dim": 4416,
            "remat": True,
            "attention_backend": "fused",
        }
    )


def _unified(config: ConfigDict) -> None:
    config.unified.update({"understanding": "features", "edit_source": "latents"})
    config.unified.update({"time": "uniform", "time_shift": 1.0, "text_chunk": 1152})
    config.unified.transformer.update(
        {
            "width": 3584,
            "depth": 28,
            "heads": 28,
            "kv_heads": 4,
            "head_dim": 128,
            "mlp_dim": 18_944,
            "rope_theta": 1e6,
            "qkv_bias": True,
            "qk_norm": False,
            "tied_head": False,
            "remat": "dots",
            "attention_backend": "fused",
        }
    )


def _stages(config: ConfigDict) -> None:
    shared = {
        "batch_size": 512,  # 2.4e6 slots a step
        "sequence_length": 4608,  # the longest document, three drawn pictures, takes about 4300
        "images_per_row": 4,
        "overlong": "skip",
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-6,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "log_every": 50,
        "save_every": 2500,
        "keep_every": 20_000,
    }
    for stage in SHARES:
        config[stage].update(shared)
        config[stage].mixture.update(mixture(stage))
    config.align.update({"learning_rate": 2e-5, "schedule": "cosine", "weight_decay": 0.0})
    config.align.update({"warmup_steps": 600, "steps": 20_000, "flow_weight": 0.0})
    config.pretrain.update({"learning_rate": 1e-4, "warmup_steps": 5000, "steps": 115_000})
    config["continue"].update({"learning_rate": 1e-4, "warmup_steps": 5000, "steps": 60_000})
    config.sft.update({"learning_rate": 1e-5, "warmup_steps": 100, "steps": 7000})
