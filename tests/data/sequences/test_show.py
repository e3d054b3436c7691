"""The picture of a packed row."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines.segments import DRAWN, Image, Text
from data_pipelines.sequences.packing import PackingConfig, pack_rows
from data_pipelines.sequences.sequence import build_document
from data_pipelines.sequences.show import show_batch
from tests.data.samples import SMALL, picture, tokenizer
from tests.stores import bucket_of_module, running_servers  # noqa: F401 - fixtures

DRAWING = [Text("a red dot"), Image(picture(1), DRAWN), Text("how many?"), Text("one", True)]
WORDS = [Text("a red dot", True)]


def batch(*rows, slots=64, config=SMALL):
    packing = PackingConfig(slots, images=4)
    written = [[build_document(s, tokenizer(), config) for s in row] for row in rows]
    return pack_rows(written, packing, config)


def draw(directory, rows, **options):
    path = show_batch(rows, tokenizer(), directory / "row.png", **options)
    return np.asarray(PilImage.open(path).convert("RGB"))


def has_colour(pixels, colour):
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return (pixels == wanted).all(axis=-1).sum() > 3000  # more than its entry in the legend


def test_the_row_with_the_most_kinds_of_slots_is_drawn(tmp_path):
    rows = batch([WORDS], [WORDS, DRAWING])
    np.testing.assert_array_equal(draw(tmp_path, rows), draw(tmp_path, rows, row=1))


def test_noisy_and_clean_slots_are_coloured_where_there_are_any(tmp_path):
    drawing, words = (draw(tmp_path, batch([segments])) for segments in (DRAWING, WORDS))
    for colour in ("#f08a4b", "#3e7cb1"):
        assert has_colour(drawing, colour) and not has_colour(words, colour)


def test_a_pooled_latent_is_drawn_as_all_the_patches_it_stands_for(tmp_path):
    config = dataclasses.replace(SMALL, pool=2)
    plain = np.zeros((8, 8, 3), np.uint8)
    plain[4:] = (10, 200, 30)  # only in the patches behind the first
    segments = [Text("a"), Image(plain, DRAWN), Text("one", True)]
    pixels = draw(tmp_path, batch([segments], config=config))
    cell = (pixels == (10, 200, 30)).all(axis=-1)[: pixels.shape[0] // 3]
    assert cell.any()


def test_a_long_row_is_cut_to_what_is_legible(tmp_path):
    assert draw(tmp_path, batch([WORDS], slots=2000)).shape[0] < 3000


def test_a_row_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the batch has no row 2; choose one from 0 to 1"):
        show_batch(batch([WORDS], [WORDS]), tokenizer(), tmp_path / "row.png", row=2)


@pytest.mark.parametrize("bucket", ["s3"], indirect=True, scope="module")
def test_a_row_is_drawn_into_a_store(bucket):
    path = show_batch(batch([WORDS]), tokenizer(), f"{bucket}/drawn/row.png")
    with PilImage.open(io.BytesIO(path.read_bytes())) as drawn:
        assert drawn.size[0] > 1000
