"""Rules that compare an answer with the true ones: one per benchmark, named in the configuration.

A rule maps (prediction, references) to a score from 0 to 1. Each follows its benchmark's published
rule, so scores are comparable with those of others. `exact` is our own, for other data.
"""

from __future__ import annotations

import collections
import math
import re
import string
import unicodedata
from collections.abc import Callable, Sequence

Rule = Callable[[str, Sequence[str]], float]

# ---- exact ------------------------------------------------------------------------------------

SENTENCE = {"Po", "Pi", "Pf", "Ps", "Pe"}  # punctuation that only structures a sentence, except:
MEANINGFUL = frozenset("%‰#&@*/\\§†‡")
DASHES = dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
QUOTES = dict.fromkeys(map(ord, "‘’ʼ"), "'")


def normalise(text: str) -> str:
    """Normalises a text: NFC, case folded, single spaces, without sentence punctuation.

    Everything that changes the meaning is kept: letters with their combining marks, in every
    script; signs, currencies and other symbols ("-5", "$5", "5%", "+"); points, commas and colons
    inside numbers ("1.5", "3:30"), and apostrophes inside words. A text of punctuation alone is
    kept unchanged, so it does not equal an empty one.
    """
    folded = _fold(text)
    kept = (_kept(folded, index) for index in range(len(folded)))
    return " ".join("".join(kept).split()) or " ".join(folded.split())


def exact(prediction: str, references: Sequence[str]) -> float:
    """Whether the prediction equals one of the references after `normalise`."""
    return float(normalise(prediction) in {normalise(reference) for reference in references})


def _fold(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate(DASHES | QUOTES))
    wide = ("F", "H")  # full-width and half-width forms of East Asian typography
    return "".join(
        unicodedata.normalize("NFKC", char) if unicodedata.east_asian_width(char) in wide else char
        for char in unicodedata.normalize("NFC", text.casefold())
    )


def _kept(text: str, index: int) -> str:
    char, before, after = text[index], text[index - 1 : index], text[index + 1 : index + 2]
    if char in ".,:" and after.isdigit():
        return char if before.isdigit() or (char == "." and not before.isalpha()) else " "
    if char == "'" and before.isalnum() and after.isalnum():
        return char
    if char == "-":  # a sign or a range; after a word or alone it separates like a space
        return "-" if after.isdigit() or (after.strip() and not before.isalnum()) else " "
    if char in MEANINGFUL or unicodedata.category(char) not in SENTENCE:
        return char
    return " "


# ---- VQA --------------------------------------------------------------------------------------

ARTICLES = {"a", "an", "the"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(value) for value, word in enumerate(NUMBERS)}
_NEGATED = "ain are ca could did does do had has have is might must need should was were wo would"
# Without forms that are words even without the apostrophe: its, were, well, ill, ...
_JOINED = (
    "he's she's that's what's where's who's how's there's let's i'm i've you're you've they're"
)
_JOINED += " they've they'll you'll we've could've should've would've who've it'll that'll o'clock"
CONTRACTIONS = {f"{verb}nt": f"{verb}n't" for verb in _NEGATED.split()}
CONTRACTIONS |= {word.replace("'", ""): word for word in _JOINED.split()}
HUMANS = 3  # this many equal human answers make an answer fully correct


def vqa_normalise(text: str) -> str:
    """Normalises an answer as VQA does.

    Lower case; no periods except in decimals; no commas between digits; other punctuation except
    apostrophe and colon becomes a space; number words become digits; no articles; contractions
    regain their apostrophe.
    """
    text = text.lower().translate(QUOTES)
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"\.(?!\d)", "", text)
    removed = set(string.punctuation) - set(".':")
    words = "".join(" " if char in removed else char for char in text).split()
    words = [DIGITS.get(word, word) for word in words if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def vqa(prediction: str, references: Sequence[str]) -> float:
    """VQA accuracy (Antol et al. 2015; https://visualqa.org/evaluation.html).

    min(equal answers / 3, 1), averaged over all subsets that leave out one person's answer; VQA
    has ten. With fewer than four references, too few for this, equality with one of them.
    """
    answer = vqa_normalise(prediction)
    equal = [vqa_normalise(reference) == answer for reference in references]
    if len(equal) <= HUMANS:
        return float(any(equal))
    total = sum(equal)
    return sum(min((total - own) / HUMANS, 1.0) for own in equal) / len(equal)


# ---- charts, documents, multiple choice -------------------------------------------------------

TOLERANCE = 0.05


def relaxed(prediction: str, references: Sequence[str]) -> float:
    """Relaxed accuracy of ChartQA (Masry et al. 2022, after Methani et al. 2020).

    A number may be off by 5% of the true one; "12%" is .12. Everything else, and a true 0, has to
    be equal except for case and outer spaces.
    """
    return float(any(_close(prediction, reference) for reference in references))


def _close(prediction: str, reference: str) -> bool:
    given, true = _number(prediction), _number(reference)
    if given is None or not true:
        return prediction.strip().lower() == reference.strip().lower()
    return abs(given - true) <= TOLERANCE * abs(true) * (1 + 1e-12)


def _number(text: str) -> float | None:
    text = text.strip()
    scale = 0.01 if text.endswith("%") else 1.0
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        return None
    return scale * value if math.isfinite(value) else None


ANLS_THRESHOLD = 0.5


def anls(prediction: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of DocVQA (Biten et al. 2019), of one answer.

    1 - edits / length of the longer text, for the most similar reference, but 0 if half of the text
    or more has to be edited. Case and runs of spaces do not matter.
    """
    answer = " ".join(prediction.lower().split())
    distances = []
    for reference in references:
        true = " ".join(reference.lower().split())
        distances.append(_edits(answer, true) / max(len(answer), len(true), 1))
    nearest = min(distances)
    return 1.0 - nearest if nearest < ANLS_THRESHOLD else 0.0


def _edits(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of one character."""
    row = list(range(len(second) + 1))
    for count, one in enumerate(first, start=1):
        diagonal, row[0] = row[0], count
        for place, other in enumerate(second, start=1):
            best = min(row[place] + 1, row[place - 1] + 1, diagonal + (one != other))
            diagonal, row[place] = row[place], best
    return row[-1]


_LETTER = re.compile(
    r"""(?:(?:the\s+)?(?:correct\s+|best\s+)?(?:answer|option|choice)\s*(?:is\s*:?|:)\s*)?
        (?:option\s+)?\(?([A-Z])\)?(?:[.,:)]|\s*$)""",
    re.IGNORECASE | re.VERBOSE,
)


def chosen_letter(text: str) -> str:
    """The letter of the option that an answer chooses, in upper case; "" if it chooses none.

    Accepts "B", "b", "(B)", "B.", "B: a cat" and "The answer is B"; "A cat" is not option A.
    """
    found = _LETTER.match(text.strip())
    return found[1].upper() if found else ""


def choice(prediction: str, references: Sequence[str]) -> float:
    """Multiple choice as in MMBench, MMMU and AI2D: whether the correct letter is chosen."""
    letter = chosen_letter(prediction)
    return float(bool(letter) and letter in {chosen_letter(reference) for reference in references})


RULES: dict[str, Rule] = {
    "exact": exact,
    "vqa": vqa,
    "relaxed": relaxed,
    "anls": anls,
    "choice": choice,
}


# ---- overlap ----------------------------------------------------------------------------------


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """The best F1, over references, of shared words (as in SQuAD), in [0, 1]."""
    return max(_f1(normalise(prediction).split(), normalise(r).split()) for r in references)


def _f1(prediction: list[str], reference: list[str]) -> float:
    shared = sum((collections.Counter(prediction) & collections.Counter(reference)).values())
    return 2.0 * shared / (len(prediction) + len(reference)) if shared else 0.0
