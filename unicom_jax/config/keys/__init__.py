"""The declarations of all configuration keys, one file for each part of a run."""
