"""What a picture of the Scenes data set contains, a few flat objects on a plain ground, and how
random scenes are sampled.

Positions are fractions of width and height, radii fractions of the shorter side, so that a scene
can be drawn at any resolution with its aspect ratio. Objects are near the nine places of a 3x3
grid: each place has a name, and no two relations can be confused. All randomness comes from
`random.Random` seeded with a string, which is the same on every platform and an order of magnitude
cheaper than building a NumPy generator for each picture.
"""

from __future__ import annotations

import dataclasses
import random

COLOURS = {
    "red": (222, 36, 40),
    "orange": (247, 140, 22),
    "yellow": (248, 214, 40),
    "green": (40, 164, 72),
    "cyan": (40, 200, 220),
    "blue": (40, 82, 220),
    "purple": (136, 56, 186),
    "pink": (252, 96, 176),
}
# Colours of the top and the bottom row. Their chroma is low, so that no ground is close to an
# object's colour.
BACKGROUNDS = {
    "white": ((250, 250, 250), (250, 250, 250)),
    "gray": ((184, 186, 190), (184, 186, 190)),
    "black": ((20, 20, 22), (20, 20, 22)),
    "sky": ((196, 216, 242), (242, 247, 253)),
    "night": ((16, 17, 40), (62, 62, 88)),
}
PLAIN_SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
LETTER = "letter"  # the shape whose `letter` field says which
SHAPES = (*PLAIN_SHAPES, LETTER)
LETTERS = ("A", "C", "E", "H", "L", "S", "T", "U")
RADII = {"small": 0.12, "large": 0.19}  # of the shorter side
SIZE_BOUNDARY = 0.151  # geometric mean of the two radii
MAX_OBJECTS = 4

PLACES = {
    "top left": (0.24, 0.24),
    "top": (0.5, 0.24),
    "top right": (0.76, 0.24),
    "left": (0.24, 0.5),
    "middle": (0.5, 0.5),
    "right": (0.76, 0.5),
    "bottom left": (0.24, 0.76),
    "bottom": (0.5, 0.76),
    "bottom right": (0.76, 0.76),
}
CORNERS = ("top left", "top right", "bottom left", "bottom right")
MAX_JITTER = 0.025  # of the axis; keeps the largest object 0.025 away from the border
_GAP = 0.04  # least gap between two objects, as a fraction of the shorter side
RELATION_MARGIN = 0.1  # centres of one row (column) differ by <= 0.05, of two rows by >= 0.21
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """An object with its centre as fractions of width and height; `letter` only if a letter."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    letter: str = ""

    @property
    def place(self) -> str:
        """Name of the nearest of the nine places."""
        row = ("top", "", "bottom")[(self.y > 0.37) + (self.y > 0.63)]
        column = ("left", "", "right")[(self.x > 0.37) + (self.x > 0.63)]
        return f"{row} {column}".strip() or "middle"

    @property
    def kind(self) -> tuple[str, str]:
        return self.shape, self.letter


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects on a named background; height and width are the pixels of its usual drawing."""

    objects: tuple[SceneObject, ...]
    background: str
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """The distribution of scenes.

    Attributes:
      sizes: (height, width) in pixels; each scene takes one of them with equal chance.
      object_weights: relative frequency of 1, 2, ... objects (as many entries as the largest number
        of objects, <= 4).
      shapes: any of SHAPES.  letters: any of LETTERS, used where `shapes` has "letter".
      colours, object_sizes, backgrounds: names from the tables of this module.
      alike_share: share of scenes of several objects in which all have one colour and shape ("three
        red stars").
      distinct_share: share in which all colours and all shapes differ; in the rest every object is
        drawn independently.
      jitter: how far, as a fraction of an axis, an object may be from the centre of its place.
      long_captions: also give a scene its long caption (`long_captions.py`), as the last one.
    """

    sizes: tuple[tuple[int, int], ...] = ((64, 64),)
    object_weights: tuple[float, ...] = (3.0, 3.0, 2.0, 2.0)
    shapes: tuple[str, ...] = SHAPES
    letters: tuple[str, ...] = LETTERS
    colours: tuple[str, ...] = tuple(COLOURS)
    object_sizes: tuple[str, ...] = tuple(RADII)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)
    alike_share: float = 0.3
    distinct_share: float = 0.5
    jitter: float = MAX_JITTER
    long_captions: bool = False

    def __post_init__(self) -> None:
        tables = {
            "shapes": SHAPES,
            "letters": LETTERS,
            "colours": tuple(COLOURS),
            "object_sizes": tuple(RADII),
            "backgrounds": tuple(BACKGROUNDS),
        }
        for field, known in tables.items():
            unknown = sorted(set(getattr(self, field)) - set(known))
            if unknown or not getattr(self, field):
                raise ValueError(
                    f"SceneConfig.{field}: {unknown or 'empty'}; choose from {', '.join(known)}"
                )
        if not self.sizes or any(min(size) < 16 for size in self.sizes):
            raise ValueError(
                f"SceneConfig.sizes: {self.sizes}; give (height, width) pairs of at least 16 pixels"
            )
        if not 1 <= len(self.object_weights) <= MAX_OBJECTS or max(self.object_weights) <= 0:
            raise ValueError(
                f"SceneConfig.object_weights: {self.object_weights}; "
                f"give 1 to {MAX_OBJECTS} weights"
            )
        if not 0 <= self.alike_share + self.distinct_share <= 1:
            raise ValueError("SceneConfig: alike_share + distinct_share must be in [0, 1]")
        if not 0 <= self.jitter <= MAX_JITTER:
            raise ValueError(f"SceneConfig.jitter: {self.jitter}; give 0 to {MAX_JITTER}")


def random_stream(seed: int, index: int, purpose: str) -> random.Random:
    """The generator of one purpose of one record. SHA-512 of the seed keeps streams apart."""
    return random.Random(f"{seed}/{index}/{purpose}")


def overlaps(a: SceneObject, b: SceneObject, height: int, width: int) -> bool:
    """Whether the circumscribed circles of two objects are closer to each other than the gap."""
    side = min(height, width)
    distance = ((a.x - b.x) * width) ** 2 + ((a.y - b.y) * height) ** 2
    return distance < ((RADII[a.size] + RADII[b.size] + _GAP) * side) ** 2


def fits(
    item: SceneObject, others: tuple[SceneObject, ...] | list[SceneObject], height: int, width: int
) -> bool:
    """Whether an object can be placed without overlapping the others."""
    return not any(overlaps(item, other, height, width) for other in others)


def sample_scene(config: SceneConfig, rng: random.Random) -> Scene:
    """Draws a scene: equal states of `rng` give equal scenes. Objects never overlap."""
    height, width = rng.choice(config.sizes)
    count = rng.choices(range(1, len(config.object_weights) + 1), config.object_weights)[0]
    looks = _sample_looks(config, count, rng)
    sizes = [rng.choice(config.object_sizes) for _ in range(count)]
    return Scene(
        _place(looks, sizes, height, width, config.jitter, rng),
        rng.choice(config.backgrounds),
        height,
        width,
    )


def _sample_looks(
    config: SceneConfig, count: int, rng: random.Random
) -> list[tuple[str, str, str]]:
    """`count` triples (shape, letter, colour)."""
    kinds = [rng.choice(config.shapes) for _ in range(count)]
    colours = [rng.choice(config.colours) for _ in range(count)]
    mode = rng.random()
    if mode < config.alike_share:
        kinds, colours = kinds[:1] * count, colours[:1] * count
    elif mode < config.alike_share + config.distinct_share:
        # With fewer values than objects, some value must repeat.
        kinds = rng.sample(config.shapes, count) if len(config.shapes) >= count else kinds
        colours = rng.sample(config.colours, count) if len(config.colours) >= count else colours
    alike = mode < config.alike_share
    letters = (
        [rng.choice(config.letters)] * count
        if alike
        else [rng.choice(config.letters) for _ in range(count)]
    )
    return [
        (k, a if k == LETTER else "", c) for k, a, c in zip(kinds, letters, colours, strict=True)
    ]


def _place(
    looks: list[tuple[str, str, str]],
    sizes: list[str],
    height: int,
    width: int,
    jitter: float,
    rng: random.Random,
) -> tuple[SceneObject, ...]:
    """Random places without overlap; after too many failed attempts the corners, where four fit."""
    for attempt in range(9):
        names = rng.sample(CORNERS if attempt == 8 else tuple(PLACES), len(looks))
        placed: list[SceneObject] = []
        for (shape, letter, colour), size, name in zip(looks, sizes, names, strict=True):
            x, y = PLACES[name]
            x, y = x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter)
            item = SceneObject(shape, colour, size, x, y, letter)
            if not fits(item, placed, height, width):
                break
            placed.append(item)
        if len(placed) == len(looks):
            return tuple(placed)
    raise AssertionError("four objects of any size fit in the four corners")
