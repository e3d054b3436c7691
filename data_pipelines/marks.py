"""The spellings of the tokens that mark turns, images, thoughts and masked words."""

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
# Added after all other tokens, and only to the tokenizers of runs that need them.
ON_DEMAND = {
    "no_mean": "<no_mean>",  # in place of a masked word (Cheers, arXiv:2603.12793)
}
