"""Does the best learning rate of a narrow model suit one four times as wide?

    unicom sweep run experiments/sweeps/transfer.py --jobs=2

With `unified.tuned_at` the settings of width 64 are rescaled for width 256 (docs/optimizer.md), and
its best learning rate should be that of width 64, within one step of the grid, a factor of the
square root of 2. Without the key, one learning rate serves matrices of any width, and the best one
should fall.

Held-out loss after 200 steps, mean of seeds 0, 1 and 2 with one encoder and codec (23 minutes of
CPU time in all, on two cores of an AMD EPYC that other jobs shared):

    learning rate       .0010  .0020  .0040  .0057  .0080  .0113  .0160  .0226  .0320
    width 64                         1.029  1.027  1.023  1.031  1.042  1.037  1.054
    width 256                          .965   .950   .945   .962   .967
    … not rescaled       .975   .977   .992         1.020

The best rate of width 256 is that of width 64. Without rescaling, the best rate is at the lower end
of the grid, an eighth of that of width 64 or less. The minima are flat: of single seeds, the best
rates are .008, .004 and .016 at width 64, and .0057, .008 and .008 at width 256.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.sweeps import smoke
from unicom_jax.sweeps.sweep import Contrast, Sweep

HEAD_DIM, DEPTH = 16, 2
GRID = tuple(0.004 * 2 ** (step / 2) for step in range(7))  # .004 to .032
LOSS = "pretrain:eval/loss"


def sizes(width: int) -> dict[str, int]:
    """Sizes of a transformer of that width."""
    return {"width": width, "heads": width // HEAD_DIM, "kv_heads": width // HEAD_DIM,
            "mlp_dim": 2 * width, "depth": DEPTH}  # fmt: skip


def tuned_at(width: int) -> tuple[str, ...]:
    """`unified.tuned_at` for settings that were tuned at that width."""
    return tuple(f"transformer.{name}={size}" for name, size in sizes(width).items())


def variant(width: int, rate: float, *, rescaled: bool) -> dict[str, object]:
    own = {f"unified.transformer.{name}": size for name, size in sizes(width).items()}
    own["unified.tuned_at"] = tuned_at(64) if rescaled else ()
    return {**own, "pretrain.learning_rate": rate}


def get_sweep() -> Sweep:
    grids = {
        "narrow": (64, GRID, True),
        "wide": (256, GRID[:5], True),
        "wide_plain": (256, tuple(rate / 4 for rate in GRID[::2]), False),
    }
    variants = {
        f"{name}_{rate:.4f}": variant(width, rate, rescaled=rescaled)
        for name, (width, rates, rescaled) in grids.items()
        for rate in rates
    }
    return Sweep(
        claim="A learning rate tuned at width 64 is the best one at width 256 as well.",
        config=get_config(),
        variants=variants,
        seeds=(0, 1, 2),
        scores=(LOSS,),
        contrasts=(Contrast(LOSS, better=f"wide_{GRID[2]:.4f}", worse=f"wide_{GRID[4]:.4f}"),),
        minutes=60,
        split="development",
    )


def get_config() -> ConfigDict:
    """Pictures of 32 px with one object, and a transformer whose size the variants choose."""
    config = smoke.get_config()
    config.data.source.size = 4096
    config.encoder.steps, config.codec.steps = 150, 150
    # One encoder and codec for all seeds: losses of other latents cannot be compared.
    config.encoder.seed = config.codec.seed = 0
    for stage in ("encoder", "codec"):
        config[stage].batch_size = 16
    config.unified.transformer.update({"tied_head": False, "head_dim": HEAD_DIM, "qk_norm": True})
    config.unified.transformer.update({"qkv_bias": False, "embedding_std": 1.0})
    config.pretrain.update({"steps": 200, "batch_size": 4, "sequence_length": 128})
    config.pretrain.update({"optimizer": "adamw", "schedule": "linear", "warmup_steps": 20})
    config.pretrain.update({"weight_decay": 0.1, "eps": 1e-8, "flow_weight": 1.0})
    config.pretrain.update({"save_every": 0, "eval_every": 200, "eval_batches": 16})
    return config
