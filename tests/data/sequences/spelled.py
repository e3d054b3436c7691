"""Documents of a few segments, and how the tests of the sequence format write them down."""

from __future__ import annotations

from data_pipelines.segments import DRAWN, SOURCE, Image, Text
from data_pipelines.sequences.sequence import build_document
from tests.data.samples import SMALL, picture, tokenizer
from unicom_jax.core.batch import Role

RED, DOT = Text("a red dot"), Text("a red dot", supervised=True)
APART = Text("a red dot", apart=True)
LOOK, PAINT = Image(picture(1)), Image(picture(2), SOURCE)
DRAW = Image(picture(3), DRAWN)

LETTERS = {Role.UNDERSTAND: "u", Role.CLEAN: "c", Role.NOISY: "n"}
SPELLING = {
    "<|im_start|>": "(",
    "<|im_end|>": ")",
    "<|endoftext|>": ".",
    "<|vision_start|>": "[",
    "<|vision_end|>": "]",
}
W = "t" * len(tokenizer().encode("a red dot"))


def write(*segments, config=SMALL):
    return build_document(segments, tokenizer(), config, "dots/7")


def spell(document):
    """One sign a slot: t word piece, u c n image roles, ( ) . [ ] turn and image marks."""
    signs = []
    for token, role in zip(document.tokens, document.roles, strict=True):
        if role != Role.TEXT:
            signs.append(LETTERS[Role(role)])
        else:
            word = tokenizer().decode([int(token)], skip_special=False)
            signs.append(SPELLING.get(word, "t"))
    return "".join(signs)
