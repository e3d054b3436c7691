"""Every configuration key with its default and meaning. Experiments start from here and override.

    config = base.get_config()
    config.unified.transformer.width = 512

A key that is not listed here does not exist: setting it is an error.
"""

from __future__ import annotations

from ml_collections import ConfigDict

STAGES = ("encoder", "codec", "align", "pretrain", "continue", "sft")

# papers/UniCom, table of sub-stages: text-only / text-to-image / image-to-text / image-text-image.
NO_TASKS = {
    "text": 0.0,
    "text_to_image": 0.0,
    "image_to_text": 0.0,
    "visual_qa": 0.0,
    "conversation": 0.0,
    "questions": 0.0,
    "edit": 0.0,
    "several_images": 0.0,
    "think_then_draw": 0.0,
    "interleaved": 0.0,
}

# Fields of data_pipelines.scenes.scene.SceneConfig.
SCENES = {
    "sizes": ((64, 64),),
    "object_weights": (3.0, 3.0, 2.0, 2.0),
    "shapes": (
        "circle",
        "square",
        "triangle",
        "star",
        "cross",
        "ring",
        "diamond",
        "heart",
        "letter",
    ),
    "letters": ("A", "C", "E", "H", "L", "S", "T", "U"),
    "colours": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"),
    "object_sizes": ("small", "large"),
    "backgrounds": ("white", "gray", "black", "sky", "night"),
    "alike_share": 0.3,
    "distinct_share": 0.5,
    "jitter": 0.025,
}


def training(**overrides) -> ConfigDict:
    """Keys that every stage has: how long, how much at a time, with which optimiser."""
    config = ConfigDict(
        {
            "steps": 1000,
            "batch_size": 32,  # rows of packed sequences, or pictures (encoder, codec)
            "accumulate": 1,  # parts a batch is split into; the gradient is the big batch's
            "learning_rate": 1e-3,
            "schedule": "constant",  # constant, cosine, linear; after the warm-up
            "warmup_steps": 50,
            "optimizer": "adamw",  # adamw, muon
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-6,
            "weight_decay": 0.01,
            "clip_norm": 1.0,
            "offload_optimizer": False,  # moments lie in the host's memory between updates
            "ema_decay": 0.0,  # 0 = off; the averaged weights are the ones saved for use
            "freeze": (),  # regular expressions over weight paths, e.g. ("transformer/.*",)
            "log_every": 20,
            "save_every": 1000,
            "keep": 3,  # checkpoints: the last ones,
            "keep_every": 0,  # each of a step that this divides,
            "keep_best": 0,  # and those with the lowest loss on held-out batches
            "eval_every": 0,
            "eval_batches": 4,
            "spike_factor": 0.0,  # skip steps with a gradient norm above so many medians; 0 = none
            "max_skipped": 20,  # skipped steps in a row that end training, or roll it back
            "max_rollbacks": 0,  # to the last good checkpoint, past the data that was skipped
            "profile_start": 10,
            "profile_steps": 0,
        }
    )
    config.update(overrides)
    return config


def unified_stage(**overrides) -> ConfigDict:
    """A sub-stage of the unified model: training keys, its mixture and its loss weights."""
    config = training(b2=0.95)
    config.update(
        {
            "init_from": "",  # WORKDIR:STAGE of another run whose weights it starts from
            "sequence_length": 256,  # slots of a packed row
            "images_per_row": 8,
            "window_rows": 8,  # rows packed together; must divide batch_size
            "overlong": "error",  # error, skip: a document longer than a row
            "flow_weight": 5.0,  # λ_diff : λ_text = 5 : 1
            "text_weight": 1.0,
            "noisy_copies": 1,  # noises and times for each drawn image; one prompt serves all
            "cfg_dropout": 0.1,  # share of drawing documents trained without their words
            "mixture": dict(NO_TASKS),
        }
    )
    config.update(overrides)
    return config


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.stages = ("encoder", "codec", "pretrain")  # run in this order; may repeat a stage
    # Each stage (and each time that it is repeated) has its own order of data and its own noise;
    # False: all share those of `seed`, as in runs from before this key.
    config.stage_seeds = True
    # Sizes of slice, data, fsdp, context, tensor; -1 = all that is left. "auto": the accelerator's
    config.mesh = "fsdp=-1"  # preset, parallel/accelerators.py
    # bfloat16 on TPU and GPU; norms, losses and the codec, but for a FLUX decoder, stay fp32
    config.compute_dtype = "float32"
    config.wandb_project = ""

    config.data = ConfigDict(
        {
            "source": {
                "kind": "scenes",  # scenes, array_record, folder, tfds, openmoji
                "path": "",  # of a folder, of records, of a prepared TFDS data set
                "size": 20_000,  # scenes in an epoch
                "held_out": 0.05,  # folder, array_record: share of records kept for evaluation
                "split": "train",  # tfds: the split to train on
                "eval_split": "",  # tfds: the split to evaluate on; "" = the one trained on
                "image": "image",  # tfds: the feature that holds the picture
                "captions": "",  # tfds: the one that holds the texts; "" = found by its usual names
            },
            "scenes": dict(SCENES),
            "patch": 16,
            "policy": "fixed",  # fixed, naflex, bucket
            "image_size": 64,
            "max_tokens": 1024,  # naflex: most patches of a picture
            "bucket_step": 64,  # bucket: pixels between the long sides of neighbouring sizes
            "tokenizer": "",  # directory with tokenizer.json; "" trains one on the source
            "vocab_size": 512,  # when one is trained; replaced by the tokenizer's own size
            "tokenizer_fingerprint": "",  # filled in when a run starts; another one is refused
            "padded_vocab_size": 0,  # at least so many embedding rows (Qwen2.5-7B: 152064)
            "prompt_open": "<|im_start|>",  # the turn's template, see sequences/sequence.py
            "prompt_close": "<|im_end|>",
            "response_close": "<|endoftext|>",
            "packed": "",  # what `unicom data prepare packed` wrote; "" packs rows while training
            "cache_mb": 512,  # examples kept in memory
            "threads": 2,
            "prefetch": 8,
            "workers": 0,  # processes instead of threads
            "max_unreadable": 0.1,  # share of records that may be unreadable before a run stops
        }
    )
    config.encoder = training(batch_size=256)
    config.encoder.update(
        {
            "init_from": "",  # a folder of SigLIP or SigLIP 2 to start from; "" = chance
            "naflex": False,
            "captions": "any",  # any, last: the most detailed one
            "pixel_weight": 0.0,  # of reading a patch's pixels from its feature; keeps detail
            "vision": {  # fields of models.vision_encoder.VisionEncoder
                "width": 128,
                "depth": 4,
                "heads": 4,
                "mlp_dim": 512,
                "remat": "none",  # none, dots, full, offload: see core/remat.py
                "attention_backend": "dense",  # dense, chunked, fused: docs/configurations.md
            },
            "text": {"width": 128, "depth": 2, "heads": 4, "mlp_dim": 512, "max_length": 48},
        }
    )
    config.codec = training(batch_size=64)
    config.codec.update(
        {
            "init_from": "",  # a folder with compressor/ and decompressor/ to start from
            "compressor": "attention",  # attention, mlp, pool, identity
            "latent_dim": 32,
            "compressor_heads": 0,  # 0 = feature_dim / latent_dim
            "latent_noise": 0.0,  # most noise on latents in training, in deviations of a channel
            "pool": 1,  # kind "pool": each side of the token grid is divided by this
            "autoencoder": {  # the decoder paints pixels, or latents of a frozen autoencoder
                "path": "",  # "" = pixels; else a folder of a diffusers AutoencoderKL
                "facts": {},  # its sizes; filled in when a run starts, which copies the folder
            },
            "decoder": {
                "kind": "dit",  # dit, flux: FLUX.1 over an autoencoder's latents
                "init_from": "",  # kind flux: a folder of a diffusers FLUX transformer
                # kind "dit": fields of models.pixel_decoder.PixelDecoder
                "width": 192,
                "depth": 4,
                "heads": 4,
                "mlp_dim": 768,
                "rope_theta": 100.0,
                # data, velocity: what the network gives; velocity suits latents of an autoencoder.
                # A decoder of kind "flux" gives velocity, whatever stands here.
                "prediction": "data",
                "time_floor": 0.05,  # least 1 - t in the loss; higher: less weight near the data
                "remat": False,
                "attention_backend": "dense",
                "flux": {  # kind "flux": fields of models.flux.FluxTransformer, and guidance
                    "channels": 64,  # of a token: (data.patch / shrinking)² · latent channels
                    "double_depth": 2,
                    "single_depth": 4,
                    "heads": 6,
                    "head_dim": 32,
                    "context_dim": 192,
                    "pooled_dim": 32,  # of a vector that is zero here; FLUX.1: 768
                    "guidance_embeds": False,  # dev: True, schnell: False
                    "guidance": 1.0,  # scale that it is told, where it takes one
                    "rope_dims": (4, 14, 14),  # of a head, for (0, row, column)
                    "remat": "none",
                    "attention_backend": "dense",
                },
            },
            "flow_weight": 1.0,
            "perceptual_weight": 0.0,  # squared distance in the frozen encoder's middle layer
            "feature_weight": 0.1,  # ‖Z − decompressor(z̃)‖²
            "time": "uniform",  # uniform, logit_normal
            "time_shift": 1.0,  # above 1: more of the time near noise
            "statistics_batches": 16,
            "sample_steps": 8,
        }
    )
    config.unified = ConfigDict(
        {
            "init_from": "",  # a folder of Qwen2, Qwen2.5 or Qwen3: the transformer starts from it
            # transfusion (I), query (II): stages with a flow loss freeze the reader; first teach it
            # in one without, for example stages ("encoder", "codec", "align", "pretrain") with
            # align.flow_weight=0.
            "pathway": "transfusion",
            "understanding": "features",  # features, latents, channel_concat, sequence_concat
            "edit_source": "latents",  # latents, features, both
            "transformer": {  # fields of models.transformer.Transformer
                "width": 192,
                "depth": 6,
                "heads": 6,
                "kv_heads": 2,
                "head_dim": 32,
                "mlp_dim": 512,
                "rope_theta": 10_000.0,
                "qkv_bias": True,
                "qk_norm": False,
                "tied_head": True,
                "embedding_std": 0.02,  # of fresh tokens; images and blocks add numbers near 1
                "remat": "none",
                "unroll": 1,  # blocks a turn of the loop; more: longer to compile, maybe faster
                "attention_backend": "dense",
            },
            "head": {"kind": "linear", "hidden_dim": 0, "depth": 3},
            "prediction": "velocity",  # velocity, data: what the flow head (decoder) gives
            "time_floor": 0.05,  # least 1 - t in the loss of data prediction
            "connector": {"depth": 2},  # query pathway only
            "flow_decoder": {"width": 192, "depth": 4, "heads": 4, "mlp_dim": 768},  # query pathway
            "time": "uniform",  # uniform, logit_normal
            "time_shift": 1.0,  # 0 = sqrt(N·d/4096)
            "text_chunk": 0,  # most slots of a row with logits at once; 0: an eighth, from 64 on
        }
    )
    for name in STAGES[2:]:
        config[name] = unified_stage()
    config.sample = ConfigDict(
        {
            "steps": 20,
            "guidance": 3.0,
            "guidance_interval": (0.0, 1.0),  # flow times between which guidance acts; 1 is data
            "sampler": "euler",  # euler, heun
            "max_tokens": 64,
        }
    )
    config.evaluation = ConfigDict(
        {
            "prompts": 32,  # a category
            "pictures": 128,
            "questions": 64,  # a kind
            "edits": 64,
            "shown": 12,  # of each kind in the report
            "think": False,  # write a plan before drawing
            "batch_size": 64,
        }
    )
    return config
