"""Scenes: the embedded data set of captioned pictures, made on the fly, with its exact judge."""
