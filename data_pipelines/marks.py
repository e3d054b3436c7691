"""The spellings of the tokens that mark turns, images, thoughts and words left out."""

from __future__ import annotations

# Attribute -> spelling, as in Qwen2.5 (the last two: Qwen3). The order fixes the ids 0..7 of a
# trained tokenizer.
SPECIAL_TOKENS = {
    "end_of_document": "<|endoftext|>",
    "turn_start": "<|im_start|>",
    "turn_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
    "think_start": "<think>",
    "think_end": "</think>",
}
# Added to the tokenizers of those runs alone that need them, behind all others.
ON_DEMAND = {
    "no_mean": "<no_mean>",  # in the place of a word that is left out (Cheers, arXiv:2603.12793)
}
