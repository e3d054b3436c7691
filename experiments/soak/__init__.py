"""A run that is killed, starved and poisoned, against a calm one: `python -m experiments.soak`."""
