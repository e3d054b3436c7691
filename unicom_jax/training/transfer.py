"""How fast the weights of a grown model learn: settings tuned on a smaller one, rescaled.

With m_in, m_out, m_L as in `core/transfer.py`, factors of the tuned learning rate, weight decay (as
AdamW multiplies it by the learning rate) and epsilon:

    AdamW                     learning rate     weight decay    epsilon
    bias, gain                1                                 1 / (m_out · m_L)
    kernel, m_in = 1          1                 1               1 / (m_out · m_L)
    other kernels             1 / m_in          m_in            1 / (m_out · m_L)
    end of a branch: also     × 1 / m_L         × m_L           × m_L

Adam moves each entry by about the learning rate, so a sum over m_in times as many entries needs
1 / m_in of it; the decay per step, their product, stays. Gradients of a weight shrink with
1 / (m_out · m_L), and so must the epsilon that is added to their size (CompleteP: Dey et al. 2025,
arXiv 2505.01618, Table 1; the last row is its branch multiplier as a part of the weights).

Muon's updates have spectral norms of about the learning rate times sqrt(max(in, out)), which makes
their entries as large as Adam's (`training/muon.py`). The norm should grow with sqrt(out / in)
(arXiv 2512.05620), so their factor is sqrt(m_out / m_in) over the growth of that longer side; the
decay per step stays here too. Its epsilon is added to the norm of a whole gradient, not to its
entries, so that the factor is sqrt(m_in / m_out) / m_L.

Longer training (Complete(d)P: Mlodozeniec et al. 2025, arXiv 2512.22382), for AdamW: with n times
the tuned number of steps, learning rate and weight decay times 1 / sqrt(n), epsilon times sqrt(n),
1 - b1 and 1 - b2 times 1 / n. Batch size and tokens enter through the number of steps alone: the
paper's ratio of batch sizes over that of tokens is 1 / n.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from unicom_jax.core.module import ParamSpec, Specs, iter_specs
from unicom_jax.core.transfer import Growth, Path
from unicom_jax.training.muon import is_kernel, longer_side


@dataclasses.dataclass(frozen=True)
class Factors:
    """Factors of a weight's learning rate, weight decay and epsilon."""

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


def factors(
    optimizer: str, specs: Specs, tuned: Specs, grown: Mapping[Path, Growth]
) -> dict[Path, Factors]:
    """The factors of each trained weight.

    Args:
      optimizer: "adamw" or "muon".
      specs: specs of the trained weights.
      tuned: specs of the weights of the tuned model.
      grown: `core.transfer.growth` of the two.
    """
    base = dict(iter_specs(tuned))

    def of(path: Path, spec: ParamSpec) -> Factors:
        if optimizer == "muon" and is_kernel(spec):
            return _muon(grown[path], longer_side(spec) / longer_side(base[path]))
        return _adam(grown[path])

    return {path: of(path, spec) for path, spec in iter_specs(specs)}


def _adam(grown: Growth) -> Factors:
    rate = grown.branch / grown.inputs
    # A branch's end has no factor of its own in the forward pass that would shrink its gradient.
    depth = 1.0 if grown.ends_branch else grown.depth
    return Factors(rate, 1 / rate, 1 / (grown.outputs * depth))


def _muon(grown: Growth, longer: float) -> Factors:
    rate = grown.branch * math.sqrt(grown.outputs / grown.inputs / longer)
    depth = 1.0 if grown.ends_branch else grown.depth
    return Factors(rate, 1 / rate, math.sqrt(grown.inputs / grown.outputs) / depth)


def for_duration(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` of a stage for its `steps` instead of `tuned_steps`; as they are if that is 0.

    `config.check_tuned` refuses settings for which there is no such rule.
    """
    settings = dict(settings)
    if not (tuned := settings["tuned_steps"]):
        return settings
    longer = settings["steps"] / tuned
    settings["b1"], settings["b2"] = (1 - (1 - settings[b]) / longer for b in ("b1", "b2"))
    settings["learning_rate"] /= math.sqrt(longer)
    settings["weight_decay"] /= math.sqrt(longer)
    settings["eps"] *= math.sqrt(longer)
    return settings
