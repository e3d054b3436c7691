"""The second family, Cheers (arXiv 2603.12793): all its stages on the embedded data set.

    unicom train    --config=experiments/cheers_quick.py --workdir=runs/cheers_quick
    unicom evaluate --workdir=runs/cheers_quick
    unicom report   --workdir=runs/cheers_quick

The scenes are those of the quickstart: one or two large objects at 48 px. A token of the KL
autoencoder is a square of 8 pixels, and a slot of the transformer holds 2 x 2 tokens, so a picture
takes nine slots, one for each place where an object can be.

    encoder       SigLIP from scratch, patches of 8 pixels
    autoencoder   4 channels at a quarter of the resolution, 2 x 2 positions per token
    align         everything except the copy of the decoder, because no transformer is trained yet
    pretrain      everything, for a few steps

The paper's ablations, each a flag of `unicom train`:

    --config.unified.cheers.gate=False      no details of the patches in the flow head
    --config.unified.cheers.pixels=False    SigLIP reads latents, and nothing is painted
    --config.unified.fold=1                 no compression: 36 slots per picture

Two runs with the same seed, on two cores of an AMD EPYC that other jobs shared. The first is one
command in a fresh workdir: 12.4 minutes of CPU time including compilation. The second was trained
stage by stage on slightly older code, in 11.6 minutes, with the encoder of an earlier run. The
evaluation takes about a minute.

    score                          one command      stage by stage   chance     n
    reconstruction, PSNR         28.4 (28.0-28.8)  28.9 (28.5-29.3)    12.2   128
    Scenes-GenEval, single           28% (16-45)       78% (61-89)      16%    32
      two / colours                   6 / 22%          34 / 41%    13 / 9%  32 each
      counting / position             0 / 0%           13 / 13%     9 / 3%  32 each
      binding                            0%                0%          0%    32
      overall                        9.4% (6-15)       30% (25-36)      8%   192
    questions                        82% (76-87)       85% (80-89)     41%   320
      colour / count                 91 / 91%          89 / 94%  27 / 75%  64 each
      position / shape / yes or no  81 / 88 / 59%  92 / 92 / 59%  16 / 30 / 59%  64 each
    captions, every fact right       67% (59-75)       80% (73-86)      8%   128

So whether it draws depends on more than the seed: one run draws single objects, the other hardly
more than by chance. The autoencoders differ first (absolute error .035 and .031 at the end), then
the flow loss at the end of align (.41 and .27). Neither assigns different colours to two objects
(binding). Read a difference between single runs of this size with care.

Earlier settings drew at chance (single 16%, overall 4%) after 390 steps that took longer. Their
data prediction was right at late flow times, and their flow loss fell as much per step as that of
the quickstart. So drawing lacked steps, and latents that a small error does not spoil:
- Noise on latents while the autoencoder trains (`autoencoder.latent_noise`). Without it, of eight
  reconstructions from latents with noise of .4 of a standard deviation, the judge accepted three.
  With it, it accepts all eight with noise of .8, and reconstructions have the same PSNR.
- 1040 steps instead of 390. A step of align takes .27 seconds of CPU time and not .7: half the
  rows, three layers and narrower MLPs in the transformer, one block in the first stage of the head,
  and a decoder with half the channels at half the resolution.
- The rate of align falls to 0. It was constant before, and the loss varied more from step to step.
- More of the flow time near noise (`unified.time_shift`), where the text matters.
These changes were made together and not compared one by one.

Other choices, also made together:
- The autoencoder. At full resolution its group norms had one group for each of 8 channels, which
  removes the level of a colour; with two groups of 4 channels, the encoder's perceptual term and
  more steps of fewer pictures, PSNR rose from 19.7 to 28.7 dB.
- The head predicts clean latents (`unified.prediction`). To predict a velocity it needs the noise
  of z_t, which here has to pass through the decoder and the patch embedding.
- The transformer trains from the first unified stage on. The paper's first stage freezes it, but
  starts from a language model; here it would be random.
- The first unified stage freezes the decoder copy instead, whose gradient would make its steps
  longer. `views_per_row` leaves out pictures that are drawn and never read.
- Fewer tasks, and four noisy copies of each drawn picture, as in `scenes_base`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart

PATCH = 8
MIXTURE = {"text_to_image": 0.65, "image_to_text": 0.12, "questions": 0.23}

# The copy of the decoder, and SigLIP's pooling, which is never trained.
HELD_AT_FIRST = ("(decoder|vision/head)/.*",)


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.stages = ("encoder", "autoencoder", "align", "pretrain")
    config.data.patch = PATCH
    config.data.scenes.object_weights = (3.0, 1.0)
    config.encoder.vision.update({"width": 64, "depth": 3, "heads": 2, "mlp_dim": 192})
    config.encoder.steps = 200
    config.autoencoder.update(
        {
            "latent_channels": 4,
            "widths": (8, 8, 32),
            "resnets": 1,
            "norm_groups": 2,
            "kl_weight": 1e-4,
            "latent_noise": 0.8,
            "perceptual_weight": 0.5,
            "steps": 1000,
            "batch_size": 8,
            "learning_rate": 6e-3,
            "schedule": "cosine",
        }
    )
    _unified(config)
    config.sample.edit_start = 0.1
    config.evaluation.update({"prompts": 32, "pictures": 128, "questions": 64, "edits": 0})
    return config


def _unified(config: ConfigDict) -> None:
    config.unified.update({"pathway": "cheers", "fold": 2, "time_shift": 3.0})
    config.unified.update({"prediction": "data", "time_floor": 0.5, "edit_words": "after"})
    config.unified.transformer.update({"depth": 3, "mlp_dim": 256, "qk_norm": True})
    config.unified.cheers.semantics.update({"depth": 1, "heads": 4, "kv_heads": 2})
    config.unified.cheers.details.update({"depth": 2, "heads": 2, "kv_heads": 1})
    shared = {
        "batch_size": 2,
        "window_rows": 2,
        "sequence_length": 224,
        "images_per_row": 6,
        "draws_per_row": 12,
        "views_per_row": 14,
        "noisy_copies": 4,
        "optimizer": "muon",
        "text_weight": 2.0,
    }
    for name in ("align", "pretrain"):
        config[name].update(shared)
        config[name].mixture.update({"conversation": 0.0, "edit": 0.0, **MIXTURE})
    config.align.update({"steps": 1000, "learning_rate": 1e-2, "schedule": "cosine"})
    config.align.freeze = HELD_AT_FIRST
    # Short: the gradient of the decoder copy is costly.
    config.pretrain.update({"steps": 40, "learning_rate": 1e-3, "schedule": "linear"})
    config.pretrain.update({"warmup_steps": 5, "ema_decay": 0.0, "eval_every": 0})
