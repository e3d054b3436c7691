"""Does a model learn to draw compressed latents faster than raw features?

    unicom sweep run experiments/sweeps/convergence.py --workdir=runs/sweeps/drawing_world

UniCom reaches with latents of 64 channels what it reaches with features of 1152 in 3.8 to 5 times
fewer steps, and ends higher. Losses of latents of different widths cannot be compared, so drawings
are judged: 32 of each category every 50 steps, which gives the curves of the report, and 96 of each
at the end, which decide. All variants have the same transformer, head and shift of the flow's time,
and are trained for 300 steps.

The base of this sweep, `get_config`, is a small world for the sweeps about drawing: scenes of one
large object at 48 px, four shapes in four colours on white. A picture has nine tokens of 128
features, one for each place of an object. The prompts of two categories name one object: `single`
its shape, `colours` its shape and colour. Those of the other four name several objects, which no
training picture shows, so the mean of all categories says little.

`pathways` and `align` have the same base. With one workdir for all three, they share encoders and
codecs.

On two cores of an AMD EPYC that other jobs shared it took 19 minutes of CPU time, and no difference
was decided: docs/science.md has the figures. `python -m experiments.steps_to_drawing` prints after
how many steps, and operations, a quarter and half of the drawings are correct.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.sweeps import channels
from unicom_jax.sweeps.sweep import Contrast, Sweep

DRAWN, SHAPES = "generation/colours", "generation/single"
FEATURES, WIDTHS = 128, (64, 32, 16)


def get_sweep() -> Sweep:
    config = get_config()
    config.pretrain.sample_every = 50
    paper = "3.8 to 5 times fewer steps"
    return Sweep(
        claim="After equal steps, latents of few channels are drawn better than raw features.",
        config=config,
        variants={
            "full": {"codec.compressor": "identity"},
            **{f"d{width}": {"codec.latent_dim": width} for width in WIDTHS},
        },
        seeds=(0, 1, 2),
        scores=(DRAWN, SHAPES, "reconstruction/psnr", "reconstruction/agreement"),
        contrasts=tuple(
            Contrast(DRAWN, better=f"d{width}", worse="full", paper=paper) for width in WIDTHS
        ),
        minutes=40,
    )


def get_config() -> ConfigDict:
    """The small world that draws, which `pathways` and `align` begin with, too."""
    config = channels.get_config()
    config.data.update({"image_size": 48, "patch": 16})
    config.data.scenes.update(
        {
            "sizes": ((48, 48),),
            "shapes": ("circle", "triangle", "ring", "cross"),
            "backgrounds": ("white",),
        }
    )
    config.encoder.vision.update({"width": FEATURES, "heads": 4})
    config.codec.latent_dim = 16
    config.unified.update({"prediction": "data", "time_floor": 0.5, "time_shift": 2.0})
    config.unified.transformer.update({"width": 128, "mlp_dim": 384})
    config.align.update(config.pretrain)
    config.align.update({"sequence_length": 256, "images_per_row": 8})
    config.pretrain.update(
        {
            "steps": 300,
            "sequence_length": 256,
            "images_per_row": 8,
            "draws_per_row": 24,
            "noisy_copies": 4,
            "sample_every": 100,
        }
    )
    for task in config.pretrain.mixture:
        config.pretrain.mixture[task] = float(task == "text_to_image")
    config.sample.update({"guidance": 2.0, "scored": 32})
    config.evaluation.update({"prompts": 96, "pictures": 64, "questions": 0})
    return config
