"""Does an attention compressor keep more of what questions ask for than an MLP?

    unicom sweep run experiments/sweeps/compressor.py --jobs=2

UniCom compresses each token's features with self-attention or with an MLP, and lets the language
model read the compressed latents: 64.0 against 62.8 on GQA, 71.8 against 69.9 on SEED, 36.0 against
31.7 on OCRBench. Here the quickstart's model reads its latents of 32 channels, and the variants
differ in the compressor alone. Those of a seed share the encoder. It was not run yet; --dry-run
predicts two hours of CPU time without the scores, on two cores of an AMD EPYC.
"""

from __future__ import annotations

from experiments import quickstart
from unicom_jax.sweeps.sweep import Contrast, Sweep


def get_sweep() -> Sweep:
    config = quickstart.get_config()
    config.unified.understanding = "latents"
    # All questions of a picture in one document: more of them in the same time.
    config.pretrain.mixture.update({"text_to_image": 0.2, "image_to_text": 0.08, "edit": 0.12})
    config.pretrain.mixture.update({"conversation": 0.6, "questions": 0.0})
    config.pretrain.steps = 1200
    return Sweep(
        claim="Latents of an attention compressor answer questions better than those of an MLP.",
        config=config,
        variants={"attention": {}, "mlp": {"codec.compressor": "mlp"}},
        seeds=(0, 1, 2),
        scores=("understanding/qa", "reconstruction/psnr", "pretrain:eval/text"),
        contrasts=(
            Contrast("understanding/qa", better="attention", worse="mlp", paper="+1.2 (GQA)"),
            Contrast("reconstruction/psnr", better="attention", worse="mlp", paper="+0.44 dB"),
        ),
        minutes=180,
    )
