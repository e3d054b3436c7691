"""Scenes at 128 pixels and five aspect ratios, for one H100-class GPU.

    unicom train    --config=experiments/scenes_large.py --workdir=runs/scenes_large
    unicom evaluate --workdir=runs/scenes_large

Result: never run; the tests build it without weights and check that its documents fit.

A picture has at most 64 patches of 16 pixels. The aspect buckets around 128² have the sizes in
which the scenes are drawn, so that nothing is cropped. The encoder resizes its positions to each
grid (NaFlex). `time_shift` and `time_floor` are the quickstart's. The other settings are older than
the findings of the quickstart (AdamW, `pixel_weight` 100, one noisy copy) and have not been tried
with them.

The unified model has 78 million weights and reads 32,768 slots per step, 1.9e13 FLOPs including
attention. At an assumed third of the card's bf16 peak, that is 0.06 s per step and half an hour for
both unified stages. A batch is 348 documents and takes about 0.26 s on a CPU core (counted and
timed without a GPU), so at that speed five of the eight worker processes are busy. If `data_wait`
in metrics.jsonl is not near zero, raise `data.workers`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base

MIXTURE = {
    "text": 0.05,
    "text_to_image": 0.40,
    "image_to_text": 0.10,
    "visual_qa": 0.15,
    "edit": 0.15,
    "several_images": 0.05,
    "think_then_draw": 0.05,
    "interleaved": 0.05,
}
# After pretraining: more tasks that take several steps.
SFT_MIXTURE = {
    "text_to_image": 0.25,
    "image_to_text": 0.10,
    "visual_qa": 0.20,
    "edit": 0.20,
    "several_images": 0.05,
    "think_then_draw": 0.10,
    "interleaved": 0.10,
}


def get_config() -> ConfigDict:
    config = base.get_config()
    config.stages = ("encoder", "codec", "pretrain", "sft")
    config.compute_dtype = "bfloat16"
    config.data.source.size = 1_000_000
    config.data.scenes.sizes = ((128, 128), (96, 160), (160, 96), (80, 192), (192, 80))
    config.data.update({"policy": "bucket", "image_size": 128, "bucket_step": 32})
    config.data.update({"workers": 8, "prefetch": 32})
    _encoder(config)
    _codec(config)
    _unified(config)
    config.sample.steps = 30
    config.evaluation.update({"prompts": 128, "pictures": 512, "edits": 256, "batch_size": 128})
    return config


def _encoder(config: ConfigDict) -> None:
    config.encoder.update(
        {
            "naflex": True,
            "steps": 10_000,
            "batch_size": 1024,
            "learning_rate": 5e-4,
            "warmup_steps": 500,
            "schedule": "cosine",
            "captions": "last",
            "pixel_weight": 100.0,
        }
    )
    config.encoder.vision.update({"width": 384, "depth": 8, "heads": 6, "mlp_dim": 1536})
    config.encoder.text.update({"width": 256, "depth": 4, "mlp_dim": 1024, "max_length": 64})


def _codec(config: ConfigDict) -> None:
    config.codec.update(
        {
            "latent_dim": 48,
            "steps": 20_000,
            "batch_size": 256,
            "learning_rate": 3e-4,
            "warmup_steps": 500,
            "schedule": "cosine",
            "ema_decay": 0.999,
            "time_shift": 2.0,
        }
    )
    config.codec.decoder.update({"width": 512, "depth": 8, "heads": 8, "mlp_dim": 1408})
    config.codec.decoder.time_floor = 0.5


def _unified(config: ConfigDict) -> None:
    config.unified.transformer.update(
        {
            "width": 768,
            "depth": 12,
            "heads": 12,
            "kv_heads": 4,
            "head_dim": 64,
            "mlp_dim": 2048,
            "remat": "dots",
        }
    )
    shared = {
        "batch_size": 32,
        "sequence_length": 1024,
        "images_per_row": 16,
        "ema_decay": 0.999,
        "log_every": 50,
        "eval_every": 500,
        "save_every": 2000,
    }
    config.pretrain.update({**shared, "steps": 20_000, "learning_rate": 4e-4})
    config.pretrain.update({"warmup_steps": 500})
    config.pretrain.mixture.update(MIXTURE)
    config.sft.update({**shared, "steps": 4000, "learning_rate": 1e-4, "schedule": "cosine"})
    config.sft.update({"warmup_steps": 100})
    config.sft.mixture.update(SFT_MIXTURE)
