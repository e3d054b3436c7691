"""A packed row as a picture: what every slot holds, predicts and sees, and its position."""

from __future__ import annotations

import dataclasses
import io
import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from data_pipelines.images import unpatchify
from data_pipelines.marks import SPECIAL_TOKENS
from data_pipelines.sequences.document import MASK_FIELDS
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.core.batch import MixedBatch, Role
from unicom_jax.core.paths import Path, as_path

LINE = 32  # slots a line
MOST_SLOTS = 512  # further slots are cut off: they would not be legible
INK, FAINT, LOSS = "#1f2933", "#7b8794", "#c81e5b"
MARK = "#52606d"  # tokens that mark turns and images
COLOURS = {
    Role.PAD: "#ffffff",
    Role.TEXT: "#d9e2ec",
    Role.UNDERSTAND: "#2ca58d",
    Role.CLEAN: "#3e7cb1",
    Role.NOISY: "#f08a4b",
}
MEANING = {
    Role.TEXT: "text",
    Role.UNDERSTAND: "image, understood",
    Role.CLEAN: "image, clean latents",
    Role.NOISY: "image, noisy latents",
    Role.PAD: "padding",
}
SMALL, TINY = 7.5, 4.8  # points
MARKS = {  # two lines are larger than one
    text: text.strip("<|>").replace("_", "\n").replace("endof", "end of\n")
    for text in SPECIAL_TOKENS.values()
}


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row of a batch, cut to `slots`; `starts` are the first slots of its documents."""

    fields: dict[str, np.ndarray]
    starts: list[int]
    slots: int

    def __getattr__(self, name: str) -> np.ndarray:
        return self.fields[name]

    @property
    def used(self) -> int:
        return int((self.roles != Role.PAD).sum())


def _ending(path: str | os.PathLike) -> str:
    return as_path(path).suffix.removeprefix(".").lower()


def check_ending(path: str | os.PathLike) -> None:
    """Raises ValueError for a file whose ending is not that of a picture format."""
    known = FigureCanvasBase.get_supported_filetypes()
    if (ending := _ending(path)) not in known:
        raise ValueError(
            f"--out={path}: {ending or 'no ending'!r} is no format; end the name in .png"
        )


def show_batch(
    batch: MixedBatch, tokenizer: Tokenizer, path: str | os.PathLike, row: int | None = None
) -> Path:
    """Draws one row of a packed batch and writes it as an image file.

    The slots are drawn in lines: words with their rotary position, image tokens as the patch they
    represent, and in red the token that a slot learns to predict. Below are the mask, coloured by
    the kind of slot that is seen, the positions, and the row's pictures.

    Args:
      batch: fields as `MixedBatch` says, on the host.
      tokenizer: the one that wrote the tokens.
      path: file to write; the ending decides the format, PNG for instance.
      row: which row; None takes the one with the most kinds of slots.

    Raises:
      ValueError: no such row, or features in place of pictures.
    """
    if batch.patches is None:
        raise ValueError(
            "these rows were packed with features in place of pictures; show the ones that they "
            'were made from, with --config.data.packed=""'
        )
    rows = len(batch.tokens)
    if row is None:
        row = max(range(rows), key=lambda r: (len(np.unique(batch.roles[r])), -r))
    if not 0 <= row < rows:
        raise ValueError(f"the batch has no row {row}; choose one from 0 to {rows - 1}")
    chosen = _cut(batch, row)
    lines = -(-chosen.slots // LINE)
    pictures = np.flatnonzero(chosen.grids[:, 0])
    heights = [0.62 * lines + 0.2, 7.2, 1.5 if len(pictures) else 0.1]
    figure = Figure(figsize=(17, sum(heights) + 1.9), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=heights, width_ratios=[1, 1.25])
    _draw_slots(figure.add_subplot(grid[0, :]), chosen, tokenizer)
    _draw_mask(figure.add_subplot(grid[1, 0]), chosen)
    _draw_positions(figure.add_subplot(grid[1, 1]), chosen)
    _draw_pictures(figure.add_subplot(grid[2, :]), chosen, pictures)
    total = batch.tokens.shape[1]
    cut = f", the first {chosen.slots} of {total} slots" if chosen.slots < total else ""
    figure.suptitle(
        f"Row {row} of {rows}: {len(chosen.starts)} documents in {chosen.used} of "
        f"{chosen.slots} slots{cut}",
        fontsize=15,
        color=INK,
        x=0.01,
        ha="left",
    )
    _legend(figure)
    path, drawn = as_path(path), io.BytesIO()
    figure.savefig(drawn, dpi=130, format=_ending(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(drawn.getvalue())
    return path


def _cut(batch: MixedBatch, row: int) -> _Row:
    per_slot = ("tokens", "positions", "roles", "image_index", "image_token")
    slots = min(batch.tokens.shape[1], MOST_SLOTS)
    fields = {
        name: np.asarray(getattr(batch, name)[row])[:slots]
        for name in (*per_slot, "targets", "target_weights")
    }
    fields |= {name: np.asarray(getattr(batch.mask, name)[row])[:slots] for name in MASK_FIELDS}
    fields |= {name: np.asarray(getattr(batch, name)[row]) for name in ("patches", "grids")}
    # Counted before the cut, which may fall within an image.
    images, roles = np.asarray(batch.image_index[row]), np.asarray(batch.roles[row])
    fields["image_tokens"] = np.array(
        [((images == images[i]) & (roles == roles[i])).sum() for i in range(slots)]
    )
    # NOISY slots refer to draws; what is shown are pictures.
    draws, noisy = np.asarray(batch.draws[row]), fields["roles"] == Role.NOISY
    pictures = draws[np.where(noisy, fields["image_index"], 0)]
    fields["image_index"] = np.where(noisy, pictures, fields["image_index"])
    starts = np.unique(fields["context_start"][fields["roles"] != Role.PAD])
    return _Row(fields, starts.tolist(), slots)


def _word(tokenizer: Tokenizer, token: int) -> tuple[str, bool]:
    """(text to show for a token, whether it is a mark)."""
    text = tokenizer.decode([int(token)], skip_special=False)
    if text in MARKS:
        return MARKS[text], True
    return text.strip() or "␣", False


def _draw_slots(axes: Axes, row: _Row, tokenizer: Tokenizer) -> None:
    lines = -(-row.slots // LINE)
    axes.set(xlim=(-0.9, LINE + 0.1), ylim=(lines * 1.25 + 0.1, -0.25))
    axes.axis("off")
    for line in range(lines):
        axes.text(
            -0.15, line * 1.25 + 0.4, line * LINE, ha="right", va="center", size=7, color=FAINT
        )
    for slot in range(row.slots):
        line, column = divmod(slot, LINE)
        _draw_slot(axes, row, tokenizer, slot, column, line * 1.25)
    for number, start in enumerate(row.starts):
        line, column = divmod(start, LINE)
        top = line * 1.25
        axes.plot([column + 0.02] * 2, [top - 0.2, top + 0.84], color=INK, lw=2.2, zorder=5)
        axes.text(column + 0.1, top - 0.05, f"document {number}", size=6, weight="bold", color=INK)


def _draw_slot(
    axes: Axes, row: _Row, tokenizer: Tokenizer, slot: int, left: float, top: float
) -> None:
    role = Role(row.roles[slot])
    if role == Role.PAD:
        axes.add_patch(_box(left, top, "#f5f7fa", "#e4e7eb"))
        return
    y, x = row.positions[slot]
    if role == Role.TEXT:
        word, mark = _word(tokenizer, row.tokens[slot])
        axes.add_patch(_box(left, top, MARK if mark else COLOURS[role], "white"))
        size = min(SMALL, 52 / max(len(part) for part in word.split("\n")))
        colour = "white" if mark else INK
        axes.text(left + 0.5, top + 0.36, word, ha="center", va="center", size=size, color=colour)
        axes.text(left + 0.5, top + 0.69, y, ha="center", va="center", size=TINY, color=colour)
    else:
        pixels = _patch_pixels(row, slot)
        axes.add_patch(_box(left, top, COLOURS[role], "white"))
        axes.imshow(pixels, extent=(left + 0.23, left + 0.77, top + 0.59, top + 0.05), zorder=3)
        label = f"{y},{x}"
        axes.text(left + 0.5, top + 0.69, label, ha="center", va="center", size=TINY, color="white")
    if row.target_weights[slot] > 0:
        word, _ = _word(tokenizer, row.targets[slot])
        label = "→ " + word.replace("\n", " ")
        size = min(6.5, 56 / len(label))
        axes.text(left + 0.5, top + 0.94, label, ha="center", va="center", size=size, color=LOSS)


def _box(left: float, top: float, colour: str, edge: str) -> Rectangle:
    return Rectangle((left + 0.03, top), 0.94, 0.8, facecolor=colour, edgecolor=edge, linewidth=0.5)


def _patch_pixels(row: _Row, slot: int) -> np.ndarray:
    """The pixels that an image slot represents: a patch, or those of a pooled latent; with noise
    if the slot is NOISY."""
    image, role, token = row.image_index[slot], row.roles[slot], int(row.image_token[slot])
    rows, cols = (int(side) for side in row.grids[image])
    pool = round((rows * cols / row.image_tokens[slot]) ** 0.5)
    down, across = divmod(token, cols // pool)
    side = _patch_side(row) * pool
    whole = unpatchify(row.patches[image], rows, cols, _patch_side(row)) / 255.0
    pixels = whole[down * side : (down + 1) * side, across * side : (across + 1) * side]
    if role == Role.NOISY:
        pixels = 0.5 * pixels + 0.5 * np.random.default_rng(slot).random(pixels.shape)
    return pixels


def _patch_side(row: _Row) -> int:
    return int(round((row.patches.shape[-1] / 3) ** 0.5))


def _draw_mask(axes: Axes, row: _Row) -> None:
    """Draws the S x S mask: the line of a query shows what it sees, in the colour of the keys."""
    key = np.arange(row.slots)
    start, stop, span, end = (row.fields[name][:, None] for name in MASK_FIELDS)
    seen = ((start <= key) & (key < stop)) | ((span <= key) & (key < end))
    table = np.array([_rgb(COLOURS[role]) for role in Role])
    table[Role.TEXT] = _rgb("#9fb3c8")
    colours = table[row.roles]
    picture = np.where(seen[:, :, None], colours[None], 1.0)
    axes.imshow(picture, interpolation="nearest", extent=(0, row.slots, row.slots, 0))
    for start in [*row.starts, row.used]:
        axes.axvline(start, color=INK, lw=0.5, alpha=0.6)
        axes.axhline(start, color=INK, lw=0.5, alpha=0.6)
    axes.set_title("Who sees whom (colour: what is seen)", size=11, loc="left", color=INK)
    _label(axes, "key slot", "query slot")


def _draw_positions(axes: Axes, row: _Row) -> None:
    """Draws the rotary positions of every slot: y as a dot, x as a ring; equal for text."""
    slots = np.arange(row.slots)
    for role in (Role.TEXT, Role.UNDERSTAND, Role.CLEAN, Role.NOISY):
        here = row.roles == role
        colour = MARK if role == Role.TEXT else COLOURS[role]
        axes.scatter(slots[here], row.positions[here, 0], s=9, color=colour, linewidths=0)
        if role != Role.TEXT:
            axes.scatter(
                slots[here],
                row.positions[here, 1],
                s=20,
                facecolors="none",
                edgecolors=colour,
                linewidths=0.7,
            )
    for start in [*row.starts, row.used]:
        axes.axvline(start, color=INK, lw=0.5, alpha=0.6)
    axes.set(xlim=(0, row.slots), ylim=(-2, row.positions.max() + 3))
    axes.set_title("Rotary positions (dot: y, ring: x)", size=11, loc="left", color=INK)
    axes.grid(color="#e4e7eb", lw=0.6)
    axes.set_axisbelow(True)
    _label(axes, "slot", "position")


def _label(axes: Axes, horizontal: str, vertical: str) -> None:
    axes.set_xlabel(horizontal, color=FAINT, size=9)
    axes.set_ylabel(vertical, color=FAINT, size=9)
    axes.tick_params(colors=FAINT, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color("#cbd2d9")


def _draw_pictures(axes: Axes, row: _Row, pictures: np.ndarray) -> None:
    axes.set(xlim=(0, max(10, len(pictures))), ylim=(1.35, 0), aspect="equal", anchor="W")
    axes.axis("off")
    for place, image in enumerate(pictures):
        rows, cols = row.grids[image]
        pixels = unpatchify(row.patches[image], rows, cols, _patch_side(row))
        high, wide = 0.9 * rows / max(rows, cols), 0.9 * cols / max(rows, cols)
        axes.imshow(pixels, extent=(place, place + wide, high, 0))
        here = (row.image_index == image) & (row.roles > Role.TEXT)
        first = row.context_start[here]
        document = row.starts.index(int(first[0])) if len(first) else "?"
        axes.text(
            place, 0.97, f"document {document}, {rows} × {cols}", size=6.5, va="top", color=INK
        )
        for offset, role in enumerate(np.unique(row.roles[here])):
            corner = (place + 0.1 * offset, 1.12)
            axes.add_patch(Rectangle(corner, 0.08, 0.08, color=COLOURS[Role(role)]))


def _legend(figure: Figure) -> None:
    handles = [
        Patch(facecolor=COLOURS[role], edgecolor="#cbd2d9", label=label)
        for role, label in MEANING.items()
    ]
    handles.insert(1, Patch(facecolor=MARK, label="mark of a turn or image"))
    handles.append(Line2D([], [], color=LOSS, marker="$→$", lw=0, label="learns to predict"))
    handles.append(Line2D([], [], color=INK, lw=2.2, label="start of a document"))
    figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9
    )


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
