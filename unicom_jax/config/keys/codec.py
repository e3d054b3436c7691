"""Keys of the codec: compressor, decompressor and pixel decoder."""

from __future__ import annotations

import dataclasses

from unicom_jax.config.key import NEUTRAL, RECORDED, Group, Key, each
from unicom_jax.config.keys.encoder import ATTENTION_BACKEND, REMAT, tower
from unicom_jax.config.keys.training import TRAINING

TIMES = ("uniform", "logit_normal")
PREDICTIONS = ("data", "velocity")

# Runs from before there was this kind of decoder do not use it: they get the defaults.
_FLUX = {
    "channels": Key(
        64,
        "Numbers per token: (data.patch / f)² · latent channels, where f is the factor by which "
        "the autoencoder reduces pictures.",
        least=1,
    ),
    "double_depth": Key(2, "Blocks with separate weights for image and features.", least=0),
    "single_depth": Key(4, "Blocks with shared weights.", least=0),
    "heads": Key(6, "Attention heads.", least=1),
    "head_dim": Key(32, "Channels of a head.", least=2),
    "context_dim": Key(192, "Channels of the features at the input of the blocks.", least=1),
    "pooled_dim": Key(32, "Size of the pooled vector, which is zero here; FLUX.1: 768.", least=1),
    "guidance_embeds": Key(
        False, "Whether the network takes a guidance scale; dev: True, schnell: False."
    ),
    "guidance": Key(1.0, "The guidance scale given to the network.", least=0),
    "rope_dims": Key((4, 14, 14), "Channels of a head for (0, row, column).", least=0, length=3),
    "remat": REMAT,
    "attention_backend": ATTENTION_BACKEND,
}
FLUX = Group(
    "A decoder of kind flux.",
    {name: dataclasses.replace(key, before=key.default) for name, key in _FLUX.items()},
)
_SD3 = {
    "depth": Key(6, "Blocks; SD3.5 medium: 24, large: 38.", least=1),
    "dual_depth": Key(
        0,
        "How many of them, from the first, attend to the image a second time; medium: 13.",
        least=0,
    ),
    "heads": Key(6, "Attention heads.", least=1),
    "head_dim": Key(32, "Channels of a head.", least=2),
    "qk_norm": Key(True, "Whether queries and keys are normalised; SD3.5: True, SD3: False."),
    "context_dim": Key(192, "Channels of the features at the input of the blocks.", least=1),
    "pooled_dim": Key(32, "Size of the pooled vector, which is zero here; SD3.5: 2048.", least=1),
    "position_side": Key(
        64, "Tokens along a side of the table of places; SD3.5 medium: 384, large: 192.", least=1
    ),
    "sample_size": Key(
        128,
        "The places of a new table run along a side from 0 to this, divided by the latents along a "
        "side of a token.",
        least=1,
    ),
    "remat": REMAT,
    "attention_backend": ATTENTION_BACKEND,
}
SD3 = Group(
    "A decoder of kind sd3.",
    {name: dataclasses.replace(key, before=key.default) for name, key in _SD3.items()},
)
DECODER = Group(
    "The pixel decoder.",
    {
        "kind": Key(
            "dit",
            "dit: a transformer over patches; flux, sd3: FLUX.1, Stable Diffusion 3 over an "
            "autoencoder's latents.",
            choices=("dit", "flux", "sd3"),
            before="dit",
        ),
        "init_from": Key(
            "",
            "A folder of a diffusers transformer of the same kind (flux, sd3) to start from; "
            '"": random initialisation.',
            path=True,
            before="",
        ),
        **tower(192, 4, 4, 768),
        "rope_theta": Key(100.0, "Base of the rotary frequencies.", above=0, before=100.0),
        "prediction": Key(
            "data",
            "What the network predicts (kind dit); velocity suits latents of an autoencoder.",
            choices=PREDICTIONS,
            before="data",
        ),
        "time_floor": Key(
            0.05,
            "Lower bound of 1 - t in the loss of data prediction; higher: less weight near data.",
            above=0,
            most=1,
            resume=RECORDED,
        ),
        "remat": Key(
            False, "Recompute blocks in the backward pass to save memory.", resume=NEUTRAL
        ),
        "attention_backend": ATTENTION_BACKEND,
        "flux": FLUX,
        "sd3": SD3,
    },
)
LOSSES = each(
    {
        "flow_weight": Key(1.0, "Weight of the decoder's flow loss.", least=0),
        "perceptual_weight": Key(
            0.0,
            "Weight of the squared distance between the frozen encoder's hidden states.",
            least=0,
        ),
        "perceptual_layers": Key(
            (0.5,),
            "Depths in the encoder, as shares of its blocks, whose hidden states are compared.",
            least=0,
            most=1,
            before=(0.5,),
        ),
        "perceptual_normalise": Key(
            False, "Divide each token's hidden state by its root mean square first.", before=False
        ),
        "perceptual_time": Key(
            0.0,
            "Weight pictures by t to this power; 1 gives little weight to predictions from noise.",
            least=0,
            before=0.0,
        ),
        "feature_weight": Key(0.1, "Weight of the decompressor's squared error.", least=0),
        "time": Key("uniform", "Distribution of the flow's time.", choices=TIMES),
        "time_shift": Key(1.0, "Above 1: more of the time near noise; 1: no shift.", above=0),
        "statistics_batches": Key(
            16, "Batches from which the latents' mean and standard deviation are computed.", least=1
        ),
    },
    resume=RECORDED,
)
CODEC = Group(
    "The stage codec and the models that it trains.",
    {
        **TRAINING,
        "batch_size": dataclasses.replace(TRAINING["batch_size"], default=64),
        "init_from": Key(
            "",
            "A folder with compressor/ and decompressor/ to start from, or WORKDIR:STAGE of "
            'another run; "": random initialisation.',
            path=True,
            before="",
        ),
        "compressor": Key(
            "attention",
            "Kind of the compressor.",
            choices=("attention", "mlp", "pool", "identity"),
        ),
        "latent_dim": Key(32, "Channels of a latent token.", least=1),
        "compressor_heads": Key(
            0, "Heads of the attention compressor; 0: feature_dim / latent_dim.", least=0
        ),
        "attention_backend": dataclasses.replace(ATTENTION_BACKEND, before="dense"),
        "latent_noise": Key(
            0.0,
            "Largest noise on latents in training, in standard deviations of a channel.",
            least=0,
            resume=RECORDED,
        ),
        "pool": Key(1, "Both sides of the token grid are divided by this (kind pool).", least=1),
        "autoencoder": Group(
            "The frozen autoencoder whose latents the decoder paints.",
            {
                "path": Key(
                    "",
                    'A folder of a diffusers autoencoder; "": the decoder paints pixels.',
                    path=True,
                    before="",
                ),
                "attention_backend": Key(
                    "dense",
                    "How its attention block is computed; its single head is too wide for fused.",
                    choices=("dense", "chunked"),
                    resume=NEUTRAL,
                    before="dense",
                ),
                "facts": Key(
                    {},
                    "Sizes of the autoencoder; set by the run when it copies the folder.",
                    filled_in=True,
                    before={},
                ),
            },
        ),
        "decoder": DECODER,
        **LOSSES,
        "sample_steps": Key(8, "Flow steps of the decoder when painting.", least=1, resume=NEUTRAL),
    },
)
