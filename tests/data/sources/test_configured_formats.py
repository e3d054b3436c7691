"""Each format from a configuration: splits, identity, and what decides packed rows."""

from __future__ import annotations

import io

import pytest
from PIL import Image as PilImage

from data_pipelines.batches import picture_loader, row_facts
from data_pipelines.build import data_identity, open_one, source_options
from data_pipelines.examples import Example
from data_pipelines.faults import SourceError
from data_pipelines.sources.configured import configured_sources
from data_pipelines.sources.identity import changes
from data_pipelines.sources.records import write_records
from data_pipelines.sources.registry import open_source
from data_pipelines.sources.split import EVALUATION, TRAIN
from tests.data.samples import tokenizer
from tests.data.sources.formats import png, write_jsonl, write_parquet, write_shards, write_tar
from tests.tiny import tiny_config

COUNT = 30


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The same records in each format, by kind of source."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    for value in range(COUNT):
        (folder / "pictures" / f"{value:02d}.png").write_bytes(png(value))
    write_shards(folder, 3, COUNT // 3)
    texts = [f"gray {value}" for value in range(COUNT)]
    rows = [{"image": f"pictures/{i:02d}.png", "text": text} for i, text in enumerate(texts)]
    (folder / "words.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    return {
        "jsonl": write_jsonl(folder / "a.jsonl", rows),
        "parquet": write_parquet(
            folder / "a.parquet", {"image": [png(i) for i in range(COUNT)], "text": texts}
        ),
        "pictures": folder / "pictures",
        "text": folder / "words.txt",
        "webdataset": folder / "s-{000..002}.tar",
    }


KINDS = ("jsonl", "parquet", "pictures", "text", "webdataset")


def config_of(kind, paths, **overrides):
    source = {"kind": kind, "path": str(paths[kind]), "held_out": 0.2}
    given = {f"data__source__{key}": value for key, value in source.items()}
    return tiny_config(**given, **overrides)


def opened(config, split):
    source = open_source(source_options(config, split, False))
    return [source[index] for index in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_splits_are_disjoint_and_together_everything(paths, kind):
    config = config_of(kind, paths)
    train, held = ({e.key for e in opened(config, split)} for split in (TRAIN, EVALUATION))
    assert held and not train & held and len(train | held) == COUNT


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_change_are_noticed_and_data_that_move_are_not(paths, kind, tmp_path):
    config = config_of(kind, paths)
    ((before, _),) = data_identity(config).values()
    for path in paths["text"].parent.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            copy = tmp_path / "other" / path.relative_to(paths["text"].parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    config.data.source.path = str(tmp_path / "other" / paths[kind].name)
    ((moved, _),) = data_identity(config).values()
    assert not changes(before, moved)
    changed = {"pictures": "00.png", "webdataset": "s-001.tar"}.get(kind, paths[kind].name)
    (file,) = (tmp_path / "other").rglob(changed)
    if kind == "parquet":
        write_parquet(file, {"image": [png(1)], "text": ["other"]})
    else:
        data = file.read_bytes()
        file.write_bytes(data + data[-1024:])
    ((now, _),) = data_identity(config).values()
    assert len(changes(before, now)) == 1


def test_what_decides_packed_rows_knows_no_folders(paths):
    facts = [
        row_facts(config_of("jsonl", paths, data__source__images=images), "pretrain")
        for images in ("", "/data/images")
    ]
    assert facts[0] == facts[1] and facts[0]["source"]["path"] == "a.jsonl"


def test_a_piece_of_text_is_as_long_as_the_shortest_row_that_reads_it(paths):
    config = config_of("text", paths)
    for stage, length in (("align", 64), ("pretrain", 96), ("sft", 200)):
        config[stage].sequence_length = length
        config[stage].mixture.text = 0.0 if stage == "align" else 1.0
    assert source_options(config, TRAIN, False)["piece"] == 3 * 96
    config.data.source.piece = 50
    assert source_options(config, TRAIN, False)["piece"] == 50


@pytest.mark.parametrize("kind", ["webdataset", "jsonl", "parquet", "pictures", "array_record"])
def test_every_source_of_files_decodes_no_more_of_a_jpeg_than_the_policy_needs(kind, tmp_path):
    buffer = io.BytesIO()
    PilImage.new("RGB", (600, 400)).save(buffer, "JPEG")
    data = buffer.getvalue()
    (tmp_path / "a.jpg").write_bytes(data)
    path = {
        "webdataset": lambda: write_tar(tmp_path / "a.tar", {"a.jpg": data, "a.txt": "black"}),
        "jsonl": lambda: write_jsonl(tmp_path / "a.jsonl", [{"image": "a.jpg", "text": "black"}]),
        "parquet": lambda: write_parquet(tmp_path / "a.parquet", {"image": [data], "text": ["a"]}),
        "pictures": lambda: tmp_path,
        "array_record": lambda: write_records(tmp_path / "a", [Example("a", data, ("a",))])[0],
    }[kind]()
    given = {"kind": kind, "path": str(path), "held_out": 0.0}
    config = tiny_config(**{f"data__source__{key}": value for key, value in given.items()})
    (one,) = configured_sources(config)
    assert open_one(config, one, TRAIN)[0].image.shape == (100, 150, 3)
    config.data.decode_scale = 0.0
    assert open_one(config, one, TRAIN)[0].image.shape == (400, 600, 3)


def test_an_option_of_another_kind_is_refused(paths):
    with pytest.raises(SourceError, match=r"data.source.piece=50 does nothing for kind 'jsonl'"):
        source_options(config_of("jsonl", paths, data__source__piece=50), TRAIN, False)


def test_the_codec_trains_on_pictures_alone_and_the_encoder_refuses_them(paths):
    config = config_of("pictures", paths)
    loader = picture_loader(config, "codec", tokenizer(), captioned=False)
    batch = next(loader)
    loader.close()
    assert batch.patches.any() and not batch.lengths.any()
    with pytest.raises(SourceError, match="caption"):
        picture_loader(config, "encoder", tokenizer(), captioned=True)
