"""Faults in a run, compared with an undisturbed one: `python -m experiments.soak`."""
