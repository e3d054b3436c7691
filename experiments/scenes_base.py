"""Scenes with up to four objects and every task, in 23 minutes of CPU time.

    unicom train    --config=experiments/scenes_base.py --workdir=runs/scenes_base
    unicom evaluate --workdir=runs/scenes_base
    unicom report   --workdir=runs/scenes_base

In addition to the quickstart: three and four objects, three letters, six colours, three
backgrounds, and ten tasks, including thinking before drawing and conversations with drawings. Small
objects, free places and the shapes that are hardest to distinguish are left to `scenes_large`.

Means of seeds 0, 1 and 2 (`--config.seed`), each trained by the first command in a new workdir, on
two cores of an AMD EPYC that other jobs shared: 22.7 to 23.3 minutes of CPU time each, and half a
minute for the evaluation. The interval is over seeds and test samples. Goals: overall 68% (missed),
questions 92%, edits 85%.

    score                          mean   seeds         95% interval   untrained  chance     n
    reconstruction, PSNR         33.8 dB  33.7 - 33.9   33.4 - 34.2      9.1        7.6    256
    Scenes-GenEval, single         89%    88 - 89%      82 - 93%         0%        17%      64
      two                          52%    45 - 59%      44 - 59%         0%         5%      64
      counting                     70%    66 - 73%      62 - 77%         0%         9%      64
      colours                      89%    84 - 94%      83 - 92%         0%         3%      64
      position                     46%    41 - 55%      39 - 53%         0%         6%      64
      binding                      43%    34 - 52%      36 - 50%         0%         0%      64
      overall                      65%    62 - 67%      61 - 68%         0%         7%     384
    questions                      93%    91 - 97%      90 - 95%         0%        33%     384
      shape                       100%   100 - 100%     94 - 100%        0%        23%      64
      count                        98%    98 - 98%      92 - 100%        0%        36%      64
      colour                       86%    80 - 97%      79 - 91%         0%        23%      64
      yes or no                    91%    91 - 92%      82 - 96%         0%        52%      64
      position                     85%    73 - 95%      78 - 90%         0%        25%      64
      text                         99%    98 - 100%     97 - 100%        0%        41%      64
    captions, every fact right     95%    93 - 96%      92 - 96%         0%         2%     256
    edits                          93%    88 - 95%      89 - 95%         0%         0%     128
      add                          96%    96 - 96%      89 - 99%         0%         0%      25
      move                         96%    96 - 96%      86 - 99%         0%         0%      26
      recolour                     91%    85 - 96%      77 - 97%         0%         0%      26
      remove                       89%    80 - 96%      77 - 95%         0%         0%      25
      replace                      91%    81 - 100%     81 - 96%         0%         0%      26

The words of an edit come before its picture, as in the quickstart, and one learning rate holds for
`pretrain` and `continue` and falls to 0 in `sft`. Before (at commit bd9cd1a), the words came after
the picture, and the rate fell to 0 in `continue` and began again at 6e-3 in `sft`; seeds 0 and 1
reached 61 and 59% overall, 92 and 92% of the questions, and 60 and 79% of the edits. Which of these
changes matters was not measured.

What the scores depend on:
- Separate questions (task `questions`): all questions about a picture are in one document, each as
  if it were the only one. In a conversation, the earlier answers are between a question and the
  picture. With conversations, raw features and few captions, 76% of the questions were answered
  correctly: the model had only half learned which object a question is about.
- Captions, a tenth of the documents. In small trials they helped at least as much as separate
  questions. Whether the model reads latents (as here) or features of a picture mattered less.
- The balance of words and pictures. With shares of .18 each for captions and questions, .4 for
  questions in the last stage, twice the text weight and embeddings of 1, 97% of the questions were
  answered correctly, but only 47% of the drawings and 45% of the edits were right.
- Noise on latents while the codec trains (`codec.latent_noise`). Without it, the judge accepted 44%
  of 192 reconstructions from latents with noise of .2 of a channel's standard deviation, and 6%
  with .3: a drawing had to be nearly exact. With it, 97% are accepted with noise of .6, and
  reconstructions lose 1.7 dB.
- Predicting clean latents (`unified.prediction`), more time near noise, normalised queries and
  keys, and three stages.
- New token embeddings of standard deviation 0.3 (`embedding_std`, from the quickstart) rather than
  0.02.

No setting was chosen by the scenes of the table, which are those of the test split.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import quickstart

MIXTURE = {
    "text": 0.01,
    "text_to_image": 0.45,
    "image_to_text": 0.12,
    "visual_qa": 0.02,
    "conversation": 0.02,
    "questions": 0.12,
    "edit": 0.19,
    "several_images": 0.01,
    "think_then_draw": 0.03,
    "interleaved": 0.03,
}
# More questions in the last stage, because they are learned most slowly.
SFT_MIXTURE = {
    "text": 0.01,
    "text_to_image": 0.38,
    "image_to_text": 0.07,
    "visual_qa": 0.02,
    "conversation": 0.03,
    "questions": 0.27,
    "edit": 0.17,
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
    config.unified.update({"understanding": "latents", "edit_words": "before"})
    config.unified.transformer.update({"depth": 4, "qk_norm": True})
    for name in ("pretrain", "continue", "sft"):
        config[name].update(config.pretrain)
        config[name].update({"noisy_copies": 4, "draws_per_row": 20, "mixture": MIXTURE})
    config.pretrain.update({"steps": 2500, "schedule": "constant", "text_weight": 2.0})
    config["continue"].update({"steps": 3500, "schedule": "constant", "text_weight": 2.0})
    config.sft.update({"steps": 2500, "schedule": "linear", "text_weight": 4.0})
    config.sft.update({"mixture": SFT_MIXTURE})
    config.evaluation.update({"prompts": 64, "pictures": 256, "questions": 64, "edits": 128})
    return config
