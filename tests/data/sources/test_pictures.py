"""Pictures alone: all below a folder, in the order of their names."""

from __future__ import annotations

import pickle

import pytest

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sequences.mixture import mixture_of
from data_pipelines.sources.identity import changes, identity_of
from data_pipelines.sources.pictures import PicturesSource
from tests.data.sources.formats import png, read_all


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for value, name in enumerate(("a.png", "b/a.JPEG", "b/é.png", "b/c/x.png")):
        (tmp_path / name).write_bytes(png(value))
    (tmp_path / ".hidden.png").write_bytes(png(9))
    (tmp_path / "labels.txt").write_text("")
    (tmp_path / "b" / "back").symlink_to(tmp_path)
    return tmp_path


def test_all_pictures_below_a_folder_are_found_once(folder):
    source = pickle.loads(pickle.dumps(PicturesSource(folder)))
    assert read_all(source) == [(value, ()) for value in range(4)]
    assert source.traits().tolist() == [16] * 4


def test_they_serve_no_task_that_needs_words(folder):
    with pytest.raises(ValueError, match="no record of PicturesSource.* has image and captions"):
        mixture_of({"text_to_image": 1.0}, PicturesSource(folder), 0)


def test_faults(folder):
    (folder / "a.png").write_bytes(b"junk")
    with pytest.raises(RecordError, match=r"a.png: cannot read image"):
        PicturesSource(folder)[0]
    (folder / "empty").mkdir()
    for name, reason in (("empty", "no picture"), ("none", "no such folder")):
        with pytest.raises(SourceError, match=reason):
            PicturesSource(folder / name)


def test_their_identity_is_that_of_their_names_and_sizes(folder):
    before = identity_of(PicturesSource(folder))
    assert not changes(before, identity_of(PicturesSource(folder)))
    (folder / "a.png").write_bytes(png(1) + b"more")
    assert changes(before, identity_of(PicturesSource(folder)))
    (folder / "a.png").rename(folder / "z.png")
    assert changes(before, identity_of(PicturesSource(folder)))
