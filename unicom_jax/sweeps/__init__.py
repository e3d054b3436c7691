"""Sweeps: variants of a configuration over seeds, the stages that they share, their results."""

from unicom_jax.sweeps.sweep import Contrast, Sweep

__all__ = ["Contrast", "Sweep"]
