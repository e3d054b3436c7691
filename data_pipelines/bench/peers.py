"""The same documents loaded with WebDataset and with Hugging Face `datasets`, both through torch's
DataLoader, as a user of these libraries would write it.

They do the work of our loader: read, decode, resize to the same size, cut into patches, tokenise
with the same tokenizer, pack into rows of the same shape. What our rows contain in addition (masks,
positions, targets, several draws) is left out.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image as PilImage

from data_pipelines.bench.stages import Raw
from data_pipelines.images import ImagePolicy, patchify
from data_pipelines.segments import Image, Text
from data_pipelines.sequences.tokenizer import Tokenizer

PEERS = ("webdataset", "datasets")
NEEDS = ("torch",)  # of both


class Rows(NamedTuple):
    """A packed batch, and how many documents are in it."""

    tokens: np.ndarray  # (B, S)
    patches: np.ndarray  # (B, M, N, C)
    documents: int


@dataclasses.dataclass(frozen=True)
class Peer:
    """What both libraries do with a document. Can be pickled.

    Attributes:
      tokenizer: as JSON.
      images, patch, unit: determine how pictures are resized.
      slots, pictures, patches: S, M and N of a row.
    """

    tokenizer: str
    images: ImagePolicy
    patch: int
    unit: int
    slots: int
    pictures: int
    patches: int

    def __call__(self, texts: Sequence[str], pictures: Sequence[PilImage.Image]) -> tuple:
        """(token ids, patches of each picture)."""
        if not hasattr(self, "_words"):
            object.__setattr__(self, "_words", Tokenizer.from_json(self.tokenizer))
        ids = [token for text in texts for token in self._words.encode(text)]
        return ids, [self._cut(picture) for picture in pictures]

    def _cut(self, picture: PilImage.Image) -> np.ndarray:
        height, width = self.images.target_size(
            picture.height, picture.width, self.patch * self.unit
        )
        resized = picture.convert("RGB").resize((width, height), PilImage.Resampling.BILINEAR)
        return patchify(np.asarray(resized), self.patch)

    def pack(self, documents: Sequence[tuple]) -> Rows:
        """Packs documents in order; one that does not fit starts a new row."""
        rows: list[list[tuple]] = [[]]
        slots = pictures = 0
        for ids, cuts in documents:
            size = min(len(ids) + sum(map(len, cuts)), self.slots)
            if slots + size > self.slots or pictures + len(cuts) > self.pictures:
                rows.append([])
                slots = pictures = 0
            rows[-1].append((ids, cuts))
            slots, pictures = slots + size, pictures + len(cuts)
        tokens = np.zeros((len(rows), self.slots), np.int32)
        shape = (len(rows), self.pictures, self.patches, 3 * self.patch**2)
        patches = np.zeros(shape, np.uint8)
        for number, row in enumerate(rows):
            start = place = 0
            for ids, cuts in row:
                kept = ids[: self.slots - start]
                tokens[number, start : start + len(kept)] = kept
                start += len(ids) + sum(map(len, cuts))
                for cut in cuts[: self.pictures - place]:
                    patches[number, place, : len(cut)] = cut
                    place += 1
        return Rows(tokens, patches, len(documents))


def missing(peer: str) -> list[str]:
    """The packages that a peer needs and that are not installed."""
    return [name for name in (peer, *NEEDS) if importlib.util.find_spec(name) is None]


# ---- WebDataset -------------------------------------------------------------------------------


def write_shards(documents: Sequence[Raw], folder: Path, shards: int) -> list[str]:
    """Tar files with the texts of a document in `json` and its pictures in `0.img`, `1.img`..."""
    paths = [str(folder / f"part-{number:03d}.tar") for number in range(shards)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for place in range(number, len(documents), shards):
                texts, pictures = _split(documents[place])
                members = {"json": json.dumps({"texts": texts}).encode()}
                members |= {f"{n}.img": data for n, data in enumerate(pictures)}
                for name, data in members.items():
                    info = tarfile.TarInfo(f"{place:08d}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return paths


def webdataset_batches(paths: Sequence[str], peer: Peer, rows: int, workers: int) -> Iterator[Rows]:
    """Endless batches of `rows` documents each."""
    import webdataset as wds

    data = (
        wds.WebDataset(list(paths), shardshuffle=False, resampled=True)  # a new order every time
        .shuffle(100)
        .map(_Sample(peer))
        .batched(rows, collation_fn=peer.pack)
    )
    return iter(wds.WebLoader(data, batch_size=None, num_workers=workers))


@dataclasses.dataclass(frozen=True)
class _Sample:
    peer: Peer

    def __call__(self, sample: dict[str, Any]) -> tuple:
        names = sorted((name for name in sample if name.endswith("img")), key=lambda n: int(n[:-4]))
        pictures = [PilImage.open(io.BytesIO(sample[name])) for name in names]
        return self.peer(json.loads(sample["json"])["texts"], pictures)


# ---- Hugging Face datasets --------------------------------------------------------------------


def write_dataset(documents: Sequence[Raw], folder: Path) -> str:
    """A folder as `save_to_disk` writes it, with the columns `texts` and `pictures`."""
    import datasets

    datasets.disable_progress_bars()
    split = [_split(document) for document in documents]
    columns = {
        "texts": [texts for texts, _ in split],
        "pictures": [[{"bytes": data, "path": None} for data in pictures] for _, pictures in split],
    }
    features = datasets.Features(
        {
            "texts": datasets.List(datasets.Value("string")),
            "pictures": datasets.List(datasets.Image()),
        }
    )
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(folder))
    return str(folder)


def datasets_batches(folder: str, peer: Peer, rows: int, workers: int) -> Iterator[Rows]:
    """Endless batches of `rows` documents each."""
    import datasets
    from torch.utils.data import DataLoader, RandomSampler

    data = datasets.load_from_disk(folder).with_transform(_Columns(peer))
    sampler = RandomSampler(data, replacement=True, num_samples=10**9)
    pack = _Packed(peer)
    return iter(DataLoader(data, rows, sampler=sampler, num_workers=workers, collate_fn=pack))


@dataclasses.dataclass(frozen=True)
class _Columns:
    peer: Peer

    def __call__(self, columns: dict[str, list]) -> dict[str, list]:
        pairs = zip(columns["texts"], columns["pictures"], strict=True)
        return {"document": [self.peer(texts, pictures) for texts, pictures in pairs]}


@dataclasses.dataclass(frozen=True)
class _Packed:
    peer: Peer

    def __call__(self, rows: list[dict[str, tuple]]) -> Rows:
        return self.peer.pack([row["document"] for row in rows])


def _split(document: Raw) -> tuple[list[str], list[bytes]]:
    texts = [one.text for one in document.segments if isinstance(one, Text)]
    return texts, [one.pixels for one in document.segments if isinstance(one, Image)]
