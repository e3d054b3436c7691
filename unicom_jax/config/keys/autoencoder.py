"""Keys of the stage that trains a KL autoencoder."""

from __future__ import annotations

import dataclasses

from unicom_jax.config.key import NEUTRAL, RECORDED, Group, Key, each
from unicom_jax.config.keys.training import TRAINING

SIZES = {
    "latent_channels": Key(16, "Channels of a latent.", least=1),
    "widths": Key(
        (32, 64, 128, 128),
        "Channels at each resolution, highest first: 4 resolutions reduce both sides by 8, 5 by "
        "16 and 6 by 32; this factor must divide data.patch.",
        least=1,
    ),
    "resnets": Key(1, "Residual blocks at each resolution; the decoder has one more.", least=1),
    "quant_conv": Key(
        True,
        "A 1 x 1 convolution at either end of the latents; FLUX.2: True, SD3 and FLUX.1: False.",
        before=True,
    ),
    "norm_groups": Key(16, "Groups of the group norms; must divide all widths.", least=1),
    "attention_backend": Key(
        "dense",
        "How its attention block is computed; its single head is too wide for fused.",
        choices=("dense", "chunked"),
        resume=NEUTRAL,
    ),
    "remat": Key(False, "Recompute blocks in the backward pass to save memory.", resume=NEUTRAL),
}
LOSSES = each(
    {
        "l1_weight": Key(1.0, "Weight of the absolute error of a colour value.", least=0),
        "kl_weight": Key(
            1e-6,
            "Weight of the KL divergence to a unit Gaussian: nats of all latents of a picture, "
            "divided by the number of its colour values.",
            least=0,
        ),
        "latent_noise": Key(
            0.0,
            "Largest noise on latents in training, in standard deviations of a channel.",
            least=0,
            before=0.0,
        ),
        "perceptual_weight": Key(
            0.0,
            "Weight of the squared distance between the frozen encoder's hidden states; above 0, "
            "it needs an encoder that was trained or imported before.",
            least=0,
            switch=True,
        ),
        "perceptual_layers": Key(
            (0.5,),
            "Depths in the encoder, as shares of its blocks, whose hidden states are compared.",
            least=0,
            most=1,
        ),
        "perceptual_normalise": Key(
            True, "Divide each token's hidden state by its root mean square first."
        ),
        "statistics_batches": Key(
            16,
            "Batches from which the latents' mean and variance are computed at the end.",
            least=1,
        ),
    },
    resume=RECORDED,
)
DISCRIMINATOR = Group(
    "A patch discriminator that is trained against the decoder with hinge losses.",
    {
        "weight": Key(
            0.0,
            "Weight of the decoder's adversarial loss; 0: no discriminator.",
            least=0,
            resume=RECORDED,
            switch=True,
        ),
        "adaptive": Key(
            True,
            "Multiply the weight by the ratio of the gradient of the other losses to that of the "
            "adversarial loss, at the decoder's last convolution; needs accumulate=1.",
            resume=RECORDED,
        ),
        "start": Key(
            0,
            "Step from which on the adversarial losses count; before it, only the other losses do.",
            least=0,
            resume=RECORDED,
        ),
        "width": Key(64, "Channels after the first convolution.", least=1),
        "layers": Key(3, "Number of convolutions of stride 2.", least=1),
    },
)
AUTOENCODER = Group(
    "The stage autoencoder, which trains a KL autoencoder from pictures, and its sizes.",
    {
        **TRAINING,
        "batch_size": dataclasses.replace(TRAINING["batch_size"], default=64),
        "init_from": Key(
            "",
            "A folder of a diffusers autoencoder (AutoencoderKL, AutoencoderKLFlux2) to start "
            'from, or WORKDIR:STAGE of another run; "": random initialisation.',
            path=True,
        ),
        **SIZES,
        "canvas": Key(
            (),
            "Rows and columns of patches that hold a picture of any bucket.",
            item=int,
            filled_in=True,
        ),
        **LOSSES,
        "discriminator": DISCRIMINATOR,
    },
)
