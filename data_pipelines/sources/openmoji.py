"""OpenMoji: 4,495 colour drawings with texts, prepared as ArrayRecord files.

OpenMoji (openmoji.org) is licensed CC BY-SA 4.0; the licence and the attribution are written beside
the data. The npm package holds the drawings as SVG, so they can be rendered at any size.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator

import resvg_py
from rich.progress import track

from data_pipelines.decoding import load_image
from data_pipelines.examples import Edit, Example
from data_pipelines.faults import SourceError, one_line
from data_pipelines.sources.openmoji_texts import (
    Catalogue,
    Drawing,
    family,
    make_catalogue,
    read_drawings,
    stable_hash,
)
from data_pipelines.sources.records import write_shards

PACKAGE = "openmoji@17.0.0"
TABLE, LICENCE, DRAWINGS = "data/openmoji.json", "LICENSE.txt", "color/svg"
INFO, NOTICE = "info.json", "NOTICE.txt"
NOTICE_TEXT = """\
The pictures are drawings of OpenMoji (https://openmoji.org), version {version}, the open-source
emoji and icon project, licensed CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/);
the full text is in LICENSE.txt. Changes: rasterised at {size} x {size} pixels on {background}.
Captions, questions and edit instructions are derived from its annotations and are under the same
licence. If you redistribute these files, keep both files with them.
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What determines the prepared data.

    Attributes:
      size: side of the pictures in pixels.
      background: CSS colour behind the drawings.
      eval_percent: share of the drawings held out. All variants of a drawing (skin tones, man and
        woman, colours) are in the same split.
      edits: the most edit pairs of one example; more make records larger.
      shards: number of files of the train split.
    """

    size: int = 64
    background: str = "#ffffff"
    eval_percent: int = 5
    edits: int = 2
    shards: int = 1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a prepared directory holds: written to info.json."""

    version: str
    settings: Settings
    train: int  # examples
    eval: int


def prepare_openmoji(
    output_dir: str | os.PathLike,
    package: str | os.PathLike | None = None,
    settings: Settings | None = None,
    *,
    progress: bool = True,
) -> Prepared:
    """Write train-*.array_record, eval-*.array_record, the licence and info.json to `output_dir`.

    The directory appears only when it is complete; an interrupted preparation leaves nothing and is
    simply restarted (it takes half a minute at 64 pixels). A directory prepared with the same
    settings is left unchanged. The same package and settings give the same bytes.

    Args:
      output_dir: must not exist, be empty, or hold the same data already.
      package: the npm package as a directory or .tgz; None: fetch PACKAGE with `npm pack`.
      settings: None: the defaults.
      progress: show a progress bar.

    Raises:
      SourceError: npm fails, a file of the package is missing or broken, or `output_dir` holds
        other data.
    """
    output, settings = pathlib.Path(output_dir), settings or Settings()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        return _already_prepared(output, settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        root = _unpack(package, pathlib.Path(scratch))
        drawings = _read_table(root)
        pictures = _rasterise(root, drawings, settings, progress)
        catalogue = make_catalogue(drawings, pictures)
        ready = pathlib.Path(scratch) / "ready"
        ready.mkdir()
        prepared = _write(ready, root, catalogue, settings)
        ready.replace(output)
    return prepared


def _already_prepared(output: pathlib.Path, settings: Settings) -> Prepared:
    try:
        info = json.loads((output / INFO).read_text(encoding="utf-8"))
        found = Prepared(**info | {"settings": Settings(**info["settings"])})
    except (OSError, ValueError, TypeError, KeyError):
        raise SourceError(f"{output}: holds other files: give a new directory") from None
    if found.settings != settings:
        raise SourceError(
            f"{output}: holds OpenMoji with other settings ({found.settings}): "
            "remove it or give a new directory"
        )
    return found


def _unpack(package: str | os.PathLike | None, scratch: pathlib.Path) -> pathlib.Path:
    """The root of the package, unpacked below `scratch` unless it is a directory already."""
    if package is not None and pathlib.Path(package).is_dir():
        return pathlib.Path(package)
    archive = _fetch(scratch) if package is None else pathlib.Path(package)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise SourceError(
            f"{archive}: not a readable npm package ({one_line(error)}): give the directory or "
            f".tgz of {PACKAGE}"
        ) from error
    return scratch / "package"  # the one top-level directory of every npm archive


def _fetch(scratch: pathlib.Path) -> pathlib.Path:
    command = ["npm", "pack", PACKAGE, "--pack-destination", str(scratch)]
    other = f"or get {PACKAGE} elsewhere and pass its path as `package`"
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SourceError(f"npm is not installed: install Node.js, {other}") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("npm err")]
        reason = (lines or error.stderr.splitlines() or ["no message"])[0]
        raise SourceError(f"npm cannot fetch {PACKAGE} ({reason}): try again, {other}") from None
    return next(scratch.glob("*.tgz"))


def _read_table(root: pathlib.Path) -> list[Drawing]:
    try:
        drawings = read_drawings(json.loads((root / TABLE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{root / TABLE}: unreadable ({one_line(error)}): give the package {PACKAGE}"
        ) from error
    if not (root / LICENCE).is_file():
        raise SourceError(f"{root / LICENCE}: missing: give the complete package {PACKAGE}")
    return drawings


def _rasterise(
    root: pathlib.Path, drawings: list[Drawing], settings: Settings, progress: bool
) -> dict[str, bytes]:
    """Hexcode -> PNG. Kept encoded: edit pairs need the pictures at random."""
    pictures = {}
    for drawing in track(drawings, "drawing OpenMoji", disable=not progress):
        path = root / DRAWINGS / f"{drawing.hexcode}.svg"
        try:
            pictures[drawing.hexcode] = bytes(
                resvg_py.svg_to_bytes(
                    svg_string=path.read_text(encoding="utf-8"),
                    width=settings.size,
                    height=settings.size,
                    background=settings.background,
                    skip_system_fonts=True,  # no drawing has text; the result must not depend on it
                )
            )
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{path}: cannot be drawn ({one_line(error)}): give the complete package {PACKAGE}"
            ) from error
    return pictures


def _write(
    ready: pathlib.Path, root: pathlib.Path, catalogue: Catalogue, settings: Settings
) -> Prepared:
    # By hash, so that every shard and every slice is a fair sample.
    drawings = sorted(catalogue.drawings, key=lambda drawing: stable_hash(drawing.hexcode))
    held_out = [d for d in drawings if stable_hash(family(d)) % 100 < settings.eval_percent]
    train = [d for d in drawings if stable_hash(family(d)) % 100 >= settings.eval_percent]
    for split, chosen, shards in (("train", train, settings.shards), ("eval", held_out, 1)):
        parts = [_examples(chosen[k::shards], catalogue, settings) for k in range(shards)]
        write_shards(ready / split, parts)
    prepared = Prepared(_version(root), settings, len(train), len(held_out))
    notice = NOTICE_TEXT.format(version=prepared.version, **dataclasses.asdict(settings))
    (ready / NOTICE).write_text(notice, encoding="utf-8")
    shutil.copyfile(root / LICENCE, ready / LICENCE)
    info = json.dumps(dataclasses.asdict(prepared), indent=2)
    (ready / INFO).write_text(info + "\n", encoding="utf-8")
    return prepared


def _examples(
    drawings: list[Drawing], catalogue: Catalogue, settings: Settings
) -> Iterator[Example]:
    pictures = catalogue.pictures
    for drawing in drawings:
        edits = [
            Edit(pair.instruction, load_image(pictures[pair.hexcode]), pair.kind, pair.caption)
            for pair in catalogue.edits(drawing, settings.edits)
        ]
        yield Example(
            key=f"openmoji/{drawing.hexcode}",
            image=load_image(pictures[drawing.hexcode]),
            captions=catalogue.captions(drawing),
            questions=catalogue.questions(drawing),
            edits=tuple(edits),
        )


def _version(root: pathlib.Path) -> str:
    try:
        return str(json.loads((root / "package.json").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"{root / 'package.json'}: no version in it ({one_line(error)}): give {PACKAGE}"
        ) from error
