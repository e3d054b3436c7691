"""Real pictures in ten minutes on two CPU cores: 4,297 OpenMoji drawings, the same three stages.

    unicom data prepare openmoji --out=data/openmoji
    unicom train    --config=experiments/openmoji.py --workdir=runs/openmoji
    unicom evaluate --workdir=runs/openmoji
    unicom report   --workdir=runs/openmoji

If the data are elsewhere, add `--config.data.source.path=...`. OpenMoji is CC BY-SA 4.0.

Result on two cores of an AMD EPYC, with `pretrain` started separately after the other two stages.
Other jobs shared the cores, so no time is given; in an earlier run, the same number of steps took
8.5 minutes on idle cores (encoder 91 s, codec 135 s, pretrain 188 s):

    reconstruction  19.2 dB (untrained 7.0)
    retrieval       2.3% [0.8, 6.7] of the drawings retrieve their own picture (chance 0.8%)
    questions       35% [29, 43] (chance 27%; recolour 38%, chance 15; skin tone 44%, chance 25)
    captions        word F1 .108 (untrained 0, chance .016)
    edits           0%

The codec learns real drawings, and questions are answered above chance; drawing from text and
edits need more than this time allows. Separate questions (task `questions`), a larger text weight
and larger new embeddings made the difference: with `visual_qa` and embeddings of 0.02, 23% [17, 29]
of the questions were answered correctly and no drawing retrieved its picture.

There is no exact judge for real drawings. A drawing counts if, among 128 pictures, the encoder
finds the captioned one nearest to it. Edits are compared with their exact targets pixel by pixel.
Questions are about the 158 held-out drawings, whose variants are held out with them. Edits exist
for the 2,372 drawings that have variants; the others are skipped.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.data.source.update({"kind": "openmoji", "path": "data/openmoji"})
    config.data.vocab_size = 2048  # English names and tags, where Scenes has a hundred words
    config.encoder.update(
        {
            "steps": 300,
            "batch_size": 64,
            "optimizer": "muon",
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "clip_norm": 10.0,
            "pixel_weight": 30.0,
        }
    )
    config.encoder.text.max_length = 32  # cuts the tag lists of every other long caption
    config.codec.update(
        {
            "steps": 300,
            "batch_size": 64,
            "optimizer": "muon",
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "time_shift": 2.0,
            "sample_steps": 4,
        }
    )
    config.codec.decoder.update({"mlp_dim": 512, "time_floor": 0.5})
    config.unified.transformer.update({"width": 128, "depth": 4, "heads": 4, "mlp_dim": 384})
    config.unified.transformer.embedding_std = 1.0
    config.pretrain.update(
        {
            "steps": 900,
            "batch_size": 4,
            "window_rows": 4,
            "images_per_row": 14,
            "noisy_copies": 2,
            "optimizer": "muon",
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "ema_decay": 0.99,
            "eval_every": 90,
            "text_weight": 2.0,
        }
    )
    config.pretrain.mixture.update(
        {"text_to_image": 0.4, "image_to_text": 0.2, "questions": 0.3, "edit": 0.1}
    )
    config.sample.guidance = 2.0
    config.evaluation.update({"pictures": 128, "questions": 32, "edits": 48})
    return config
