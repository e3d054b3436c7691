"""Scenes with up to four objects and every task, in under an hour of CPU time.

    unicom train    --config=experiments/scenes_base.py --workdir=runs/scenes_base
    unicom evaluate --workdir=runs/scenes_base
    unicom report   --workdir=runs/scenes_base

Beyond the quickstart: three and four objects, three letters, six colours, three grounds, and all
nine tasks, thinking before drawing and conversations with drawings among them. Small objects, free
places and the shapes that are hardest to tell apart stay for `scenes_large`.

One run on two cores of an AMD EPYC that other jobs shared: about 45 minutes of CPU time (encoder
4.5, codec 5.4, pretrain 10, continue 15, sft 10), 69 minutes by the clock. Goals: overall 60%,
questions 85%, edits 50%.

    score                          value   95% interval   untrained  chance    n
    reconstruction, PSNR         33.3 dB   32.9 - 33.7      9.1        8.0    256
    Scenes-GenEval, single         91%     81 - 96%         0%        27%      64
      two                          55%     43 - 66%         0%        11%      64
      counting                     77%     65 - 85%         0%        12%      64
      colours                      91%     81 - 96%         0%         0%      64
      position                     42%     31 - 54%         0%         3%      64
      binding                      59%     47 - 71%         0%         0%      64
      overall                      69%     64 - 73%         0%         9%     384
    questions                      75%     70 - 79%         0%        35%     384   goal missed
      count / text                 97 / 92%                 0%     39 / 42%    64 each
      colour / shape / position    78 / 69 / 67%            0%  27 / 28 / 23%  64 each
      yes or no                    47%     35 - 59%         0%        53%      64
    captions, every fact right     71%     65 - 76%         0%         2%     256
    edits                          86%     79 - 91%         0%         0%     128
      add / move / recolour        88 / 88 / 85%            0%         0%      25, 25, 26
      remove / replace             92 / 77%                 0%         0%      26 each

What changed since a run of 23 minutes by the clock with 21, 58 and 12%; no change was scored alone:
- Noise on latents while the codec trains (`codec.latent_noise`). Without it, noise of .2 of a
  channel's deviation left 44% of 192 reconstructions right in the judge's eyes and of .3 left 6%: a
  drawing had to be nearly exact. Most of the variance was the ground's, and shapes were 1.6 to 4.9
  apart in a token. With it noise of .6 leaves 97% right, shapes are 5.7 to 11.5 apart, and the
  reconstructions lose 1.7 dB.
- Clean latents predicted (`unified.prediction`), more time near noise, normalised queries and
  keys, three sub-stages.

Questions miss their goal: most mistakes confuse which of several objects is meant, and yes-or-no
questions are not learned at all, as in the quickstart. `sft` asks more of them, which did not help
much: before it 74% were right (of 240 questions about other scenes). Half of an hour's CPU time is
left; an hour's steps, or reading the noise-trained latents too (`unified.understanding`), are
untried.

Settings were chosen by looking at scores on held-out scenes, other ones than those of the table. A
run in parts: encoder and codec were trained first, and the lengths of `continue` and `sft` were set
when the stage before them ended. Muon's weight decay still reached norms and biases then, and its
eps was not the configuration's.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart

MIXTURE = {
    "text": 0.01,
    "text_to_image": 0.47,
    "image_to_text": 0.03,
    "visual_qa": 0.02,
    "conversation": 0.22,
    "edit": 0.2,
    "several_images": 0.01,
    "think_then_draw": 0.02,
    "interleaved": 0.02,
}
# At the end more questions: they learn slowest.
SFT_MIXTURE = {
    "text": 0.01,
    "text_to_image": 0.31,
    "image_to_text": 0.03,
    "visual_qa": 0.04,
    "conversation": 0.42,
    "edit": 0.14,
    "several_images": 0.01,
    "think_then_draw": 0.02,
    "interleaved": 0.02,
}


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    config.data.source.size = 40_000
    config.data.scenes.update(
        {
            "object_weights": (3.0, 3.0, 2.0, 2.0),
            "shapes": ("circle", "triangle", "ring", "cross", "letter"),
            "letters": ("L", "T", "U"),
            "colours": ("red", "yellow", "green", "cyan", "blue", "purple"),
            "backgrounds": ("white", "gray", "black"),
        }
    )
    config.stages = ("encoder", "codec", "pretrain", "continue", "sft")
    config.encoder.steps = 600
    config.encoder.text.max_length = 56
    config.codec.update({"steps": 600, "latent_noise": 0.6})
    config.unified.update({"prediction": "data", "time_floor": 0.5, "time_shift": 2.0})
    config.unified.transformer.update({"depth": 4, "qk_norm": True})
    for name in ("pretrain", "continue", "sft"):
        config[name].update(config.pretrain)
        config[name].update({"noisy_copies": 4, "images_per_row": 22, "mixture": MIXTURE})
    config.pretrain.update({"steps": 2500, "schedule": "constant", "text_weight": 2.0})
    config["continue"].update({"steps": 3600, "schedule": "linear", "text_weight": 2.0})
    config.sft.update({"steps": 2500, "schedule": "linear", "text_weight": 4.0})
    config.sft.update({"learning_rate": 6e-3, "mixture": SFT_MIXTURE})
    config.evaluation.update({"prompts": 64, "pictures": 256, "edits": 128})
    return config
