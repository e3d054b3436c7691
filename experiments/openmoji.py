"""Real pictures in ten minutes on two CPU cores: 4,297 OpenMoji drawings, the same three stages.

    unicom data prepare openmoji --out=data/openmoji
    unicom train    --config=experiments/openmoji.py --workdir=runs/openmoji
    unicom evaluate --workdir=runs/openmoji
    unicom report   --workdir=runs/openmoji

Data that lie elsewhere: `--config.data.source.path=...`. OpenMoji is CC BY-SA 4.0.

Result: not measured yet. What ten minutes can show is learning, not skill: reconstructions of real
drawings, and answers and retrieval above the untrained model and above chance. The planned
time, from quickstart's speed: encoder 500 steps in 90 s, codec 450 in 140 s, pretrain 420 in 260 s,
compiling and start-up 60 s; the rest is reserve. A pretrain step is 51 documents, so each drawing
is met about five times.

There is no exact judge for real drawings. A drawing counts when the encoder finds the captioned
picture nearest to it among 128, edits are compared with their exact targets pixel by pixel, and
the questions are those of the 158 held-out drawings, whose variants were held out with them. Edits
exist for the 2,372 drawings that have variants; the stream passes over the others.
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
            "steps": 500,
            "batch_size": 48,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "clip_norm": 10.0,
            "pixel_weight": 100.0,
        }
    )
    config.encoder.text.max_length = 32  # cuts the tag lists of every other long caption
    config.codec.update(
        {
            "steps": 450,
            "batch_size": 64,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "time_shift": 2.0,
            "sample_steps": 4,
        }
    )
    config.codec.decoder.update({"mlp_dim": 512, "time_floor": 0.5})
    config.pretrain.update(
        {
            "steps": 420,
            "batch_size": 8,
            "images_per_row": 11,
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "ema_decay": 0.99,
        }
    )
    config.pretrain.mixture.update(
        {"text_to_image": 0.4, "image_to_text": 0.1, "visual_qa": 0.3, "edit": 0.2}
    )
    config.evaluation.update({"pictures": 128, "questions": 32, "edits": 48})
    return config
