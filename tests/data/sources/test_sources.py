from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines.decoding import load_image
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.marks import SPECIAL_TOKENS
from data_pipelines.sources import records
from data_pipelines.sources import registry as sources
from data_pipelines.sources import tfds as tfds_source
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.registry import open_source
from data_pipelines.sources.tfds import TfdsSource
from tests.data.sources.formats import (
    png,
    tf_example,
    write_parquet,
    write_tar,
    write_tf_examples,
)


def picture(value: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def make_folder(path, rows, name="captions.jsonl", images=("a.png", "b.png")):
    path.mkdir(exist_ok=True)
    for value, image in enumerate(images):
        PilImage.fromarray(picture(value)).save(path / image)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# --- folder


def test_a_folder_yields_pictures_with_texts_questions_and_edits(tmp_path):
    row = {
        "file_name": "a.png",
        "captions": ["a longer text", "short"],
        "questions": [{"question": "what?", "answer": "a thing", "kind": "object"}],
        "edits": [{"instruction": "make it grey", "target": "b.png", "caption": "grey"}],
        "thought": "plan",
        "another column": 3,
    }
    (found,) = list(FolderSource(make_folder(tmp_path, [row])))
    assert found.captions == ("short", "a longer text")  # the first is the shortest
    assert (found.questions[0].answer, found.questions[0].kind) == ("a thing", "object")
    assert (found.edits[0].kind, found.edits[0].caption, found.thought) == ("other", "grey", "plan")
    np.testing.assert_array_equal(found.image, picture(0))
    np.testing.assert_array_equal(found.edits[0].target, picture(1))


@pytest.mark.parametrize("image_key", ["file_name", "image"])
@pytest.mark.parametrize("text_key", ["text", "caption", "captions"])
@pytest.mark.parametrize("list_name", ["captions.jsonl", "metadata.jsonl"])
def test_the_usual_spellings_of_keys_and_lists_are_read(tmp_path, image_key, text_key, list_name):
    folder = make_folder(tmp_path, [{image_key: "b.png", text_key: "größer"}], list_name)
    assert FolderSource(folder)[0].captions == ("größer",)


def test_blank_lines_are_no_records_but_count_as_lines(tmp_path):
    good = {"file_name": "a.png", "text": "a"}
    source = FolderSource(make_folder(tmp_path, [good, "", good | {"text": ""}]))
    assert len(source) == 2
    with pytest.raises(RecordError, match=r"captions.jsonl line 3: empty caption: give a text or"):
        source[1]


NAN = float("nan")
BROKEN_ROWS = {
    "no json": ("{", "not JSON"),
    "no object": ("[1]", "not a JSON object"),
    "no image": ({"text": "a"}, "no 'file_name' or 'image'"),
    "image is no name": ({"image": 3, "text": "a"}, "not a file name"),
    "no caption": ({"image": "a.png"}, "no 'captions' or 'caption' or 'text'"),
    "blank caption": ({"image": "a.png", "text": "  "}, "empty caption"),
    "empty list": ({"image": "a.png", "captions": []}, "empty caption"),
    "caption is no text": ({"image": "a.png", "text": {"en": "a"}}, "a text or a list"),
    "missing image": ({"image": "none.png", "text": "a"}, "none.png"),
    "broken image": ({"image": "bad.png", "text": "a"}, "bad.png"),
    "half a question": ({"image": "a.png", "text": "a", "questions": [{"question": "x"}]}, "answe"),
    "questions are NaN": ({"image": "a.png", "text": "a", "questions": NAN}, "questions is nan"),
    "questions are a number": ({"image": "a.png", "text": "a", "questions": 3}, "questions is 3"),
    "edits are true": ({"image": "a.png", "text": "a", "edits": True}, "edits is True"),
    "a question without list": (
        {"image": "a.png", "text": "a", "questions": {"question": "q", "answer": "a"}},
        "give a list of objects",
    ),
    "thought is NaN": (
        {"image": "a.png", "text": "a", "thought": NAN},
        "thought is nan: give a te",
    ),
    "thought is a list": ({"image": "a.png", "text": "a", "thought": ["b"]}, "thought is"),
    "caption is NaN": ({"image": "a.png", "text": NAN}, "a text or a list of texts"),
    "caption is null": ({"image": "a.png", "text": None}, "no 'captions' or 'caption' or 'text'"),
    "a caption is a number": (
        {"image": "a.png", "captions": ["a", 5]},
        "a text or a list of texts",
    ),
    "half an emoji": ({"image": "a.png", "text": "a \ud83d"}, "an incomplete character"),
    "half an emoji in an answer": (
        {"image": "a.png", "text": "a", "questions": [{"question": "q", "answer": "\ude00"}]},
        "an incomplete character",
    ),
    "a file name with NUL": ({"image": "a\0b.png", "text": "a"}, "null byte"),
    "too deep": ("[" * 100_000, "not JSON"),
    "broken target": (
        {"image": "a.png", "text": "a", "edits": [{"instruction": "x", "target": "bad.png"}]},
        "bad.png",
    ),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_a_broken_line_is_one_line_that_names_list_and_number(tmp_path, name):
    row, reason = BROKEN_ROWS[name]
    folder = make_folder(tmp_path, [row])
    (folder / "bad.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(RecordError, match=f"captions.jsonl line 1: .*{reason}") as caught:
        FolderSource(folder)[0]
    assert "\n" not in str(caught.value)


def test_an_empty_cell_is_a_missing_one(tmp_path):
    empty = {"questions": None, "edits": None, "thought": None, "text": None}
    row = {"image": "a.png", "caption": "in the other column"} | empty
    (found,) = FolderSource(make_folder(tmp_path, [row]))
    assert found.captions == ("in the other column",)
    assert (found.questions, found.edits, found.thought) == ((), (), "")


MARKED = [
    {"text": "how do I print {} in a chat?"},
    {"text": "a", "questions": [{"question": "what is {}?", "answer": "a mark"}]},
    {"text": "a", "questions": [{"question": "what?", "answer": "{}"}]},
    {"text": "a", "edits": [{"instruction": "draw {}", "target": "b.png"}]},
    {"text": "a", "thought": "first {} then"},
]


@pytest.mark.parametrize("mark", SPECIAL_TOKENS.values())
def test_a_text_that_spells_a_mark_of_the_model_breaks_its_record_in_every_source(tmp_path, mark):
    rows = [json.dumps({"image": "a.png"} | row).replace("{}", mark) for row in MARKED]
    source = FolderSource(make_folder(tmp_path, rows))
    for index in range(len(MARKED)):
        with pytest.raises(
            RecordError, match=f"line {index + 1}: a text contains '{mark}'".replace("|", ".")
        ):
            source[index]
    marked = records.encode_example(Example("k", picture(0), (f"see {mark}",)))
    with pytest.raises(RecordError, match="a text contains"):
        records.decode_example(marked, "x")


@pytest.mark.parametrize("words", ["half a mark <|im_sta", "IM START < | im_start | >", "<thinks>"])
def test_a_text_that_only_resembles_a_mark_is_read(tmp_path, words):
    row = {"image": "a.png", "text": words}
    assert FolderSource(make_folder(tmp_path, [row]))[0].captions == (words,)


def test_a_folder_without_its_list_is_refused_with_an_example_line(tmp_path):
    with pytest.raises(SourceError, match="write captions.jsonl with lines like"):
        FolderSource(tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        FolderSource(tmp_path / "none")
    with pytest.raises(SourceError, match="no line with a picture"):
        FolderSource(make_folder(tmp_path, [""]))


# --- TFDS


def tiny_tfds(directory, features, examples, file_format="array_record"):
    """Prepare a data set of three-channel pictures and return its directory."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = {"image": tfds.features.Image(shape=(None, None, 3))}
            features_dict = tfds.features.FeaturesDict(image | features(tfds))
            return tfds.core.DatasetInfo(builder=self, features=features_dict)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, example in enumerate(examples):
                buffer = io.BytesIO(records.encode_png(picture(index)))
                yield index, {"image": buffer} | example

    builder = TinyCaptions(data_dir=str(directory), file_format=file_format)
    builder.download_and_prepare()
    return str(builder.data_path)


def coco_features(tfds):
    sentence = {"id": np.int64, "text": tfds.features.Text()}
    return {"captions": tfds.features.Sequence(sentence)}


COCO = [
    {"captions": [{"id": 1, "text": "größer als"}, {"id": 2, "text": "a cat"}]},
    {"captions": []},
]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return tiny_tfds(tmp_path_factory.mktemp("tfds"), coco_features, COCO)


def test_a_coco_like_tfds_directory_yields_pictures_with_captions(coco):
    found = {}
    source = TfdsSource(coco)
    for index in range(len(source)):
        try:
            found[index] = source[index]
        except RecordError as error:
            assert "record" in str(error) and "empty caption" in str(error)
    (example,) = found.values()
    assert example.captions == ("a cat", "größer als")
    np.testing.assert_array_equal(example.image, picture(0))


def test_other_caption_features_are_found_or_named(tmp_path):
    directory = tiny_tfds(
        tmp_path,
        lambda tfds: {"title": tfds.features.Text(), "text": tfds.features.Text()},
        [{"title": "a title", "text": "a text"}],
    )
    assert TfdsSource(directory)[0].captions == ("a text",)
    assert TfdsSource(directory, captions="title")[0].captions == ("a title",)
    with pytest.raises(SourceError, match="set data.source.captions to one of text, title"):
        TfdsSource(directory, captions="titel")
    with pytest.raises(SourceError, match="set data.source.image to one of"):
        TfdsSource(directory, image="picture")


def test_the_names_of_classes_become_captions(tmp_path):
    directory = tiny_tfds(
        tmp_path,
        lambda tfds: {"label": tfds.features.ClassLabel(names=["cat", "dog"])},
        [{"label": 0}, {"label": 1}],
    )
    with pytest.raises(SourceError, match="set data.source.captions to one of label"):
        TfdsSource(directory)
    found = TfdsSource(directory, captions="label")
    assert sorted(found[i].captions for i in range(2)) == [("cat",), ("dog",)]
    with pytest.raises(SourceError, match="set data.source.captions to one of label"):
        TfdsSource(directory, captions="image")


@pytest.mark.parametrize(("channels", "expected"), [(1, 40), (4, 147)])
def test_gray_and_transparent_pictures_of_tfds_become_rgb(channels, expected):
    image = np.full((6, 5, channels), 40, np.uint8)
    if channels == 4:
        image[..., 3] = 128  # half transparent on white
    made = tfds_source._picture(image, "x", load_image)
    assert made.shape == (6, 5, 3) and abs(int(made[0, 0, 0]) - expected) <= 1


def test_pictures_of_tfds_are_decoded_as_those_of_other_sources(tmp_path):
    """Upright, in sRGB; one that lacks rows breaks its record."""
    lying, exif = PilImage.fromarray(picture(5, 12, 8)), PilImage.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO() for _ in range(2)]
    lying.save(files[0], "PNG", exif=exif)
    files[1].write(records.encode_png(np.full((64, 8, 3), 99, np.uint8)))
    short = records.encode_png(np.full((20, 8, 3), 99, np.uint8))
    whole = files[1].getvalue()
    files[1] = io.BytesIO(whole[:33] + short[33:])  # the header of 64 rows before 20
    files[0].seek(0)
    directory = tiny_tfds(
        tmp_path,
        lambda tfds: {"text": tfds.features.Text()},
        [{"image": files[0], "text": "upright"}, {"image": files[1], "text": "short"}],
    )
    source, found, reasons = TfdsSource(directory), [], []
    for index in range(2):
        try:
            found.append(source[index])
        except RecordError as error:
            reasons.append(str(error))
    (example,), (reason,) = found, reasons
    upright = np.asarray(lying.transpose(PilImage.Transpose.ROTATE_270))
    np.testing.assert_array_equal(example.image, upright)
    assert "record" in reason and "500 of 1600 bytes of pixels" in reason
    texts = TfdsSource(directory, read=lambda data: len(data))
    assert {texts[index].captions[0] for index in range(2)} == {"upright", "short"}


@pytest.mark.parametrize("split", ["validation", "train"])
def test_what_tfds_cannot_open_is_one_line_that_names_the_fix(coco, tmp_path, split):
    name = coco if split == "validation" else str(tmp_path)  # no such split; no data set at all
    with pytest.raises(SourceError, match=f"{name}.*prepared with file_format") as caught:
        TfdsSource(name, split)
    assert "\n" not in str(caught.value)


def test_reading_tfds_never_imports_tensorflow(coco):
    code = (
        "import sys; from data_pipelines.sources.tfds import TfdsSource as S\n"
        f"s = S({coco!r}, 'train'); len(s); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- by name


def test_every_kind_opens_from_a_config(tmp_path, coco):
    folder = make_folder(tmp_path / "folder", [{"image": "a.png", "text": "a"}])
    example = FolderSource(folder)[0]
    records.write_records(tmp_path / "records" / "eval", [example])
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    tar = write_tar(tmp_path / "a.tar", {"a.png": png(1), "a.txt": "gray"})
    table = write_parquet(tmp_path / "a.parquet", {"image": [png(1)], "text": ["gray"]})
    labelled = tf_example(image=[png(1)], text=[b"gray"])
    configs = {
        "jsonl": {"paths": folder / "captions.jsonl"},
        "parquet": {"paths": table},
        "pictures": {"path": folder},
        "text": {"paths": tmp_path / "a.txt", "piece": 64},
        "webdataset": {"paths": tar},
        "folder": {"path": folder},
        "array_record": {"paths": tmp_path / "records"},
        "openmoji": {"path": tmp_path / "records", "split": "eval"},
        "tfds": {"name": coco},
        "tf_example": {"paths": write_tf_examples(tmp_path / "b.array_record", labelled)},
        "scenes": {"size": 2, "seed": 1},
    }
    elsewhere = {*sources.DOCUMENT_KINDS, "datasets"}  # in test_datasets.py, with its package
    assert configs.keys() | elsewhere == sources.KINDS.keys()
    for kind, arguments in configs.items():
        first = open_source({"kind": kind} | arguments)[0]
        assert bool(first.captions) == (kind != "pictures")
        assert (first.image is None) == (kind == "text")


def test_broken_records_are_skipped_unless_the_config_says_no(tmp_path):
    folder = make_folder(tmp_path, [{"image": "none"}, {"image": "a.png", "text": "good"}])
    assert open_source({"kind": "folder", "path": folder})[0].captions == ("good",)
    with pytest.raises(RecordError, match="line 1"):
        open_source({"kind": "folder", "path": folder, "skip_broken": False})[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "foldr", "path": "a"}, "'foldr' is unknown: did you mean 'folder'"),
        ({"path": "a"}, "kind None is unknown: choose one of scenes"),
        ({"kind": "folder"}, "'folder' lacks 'path'"),
        ({"kind": "folder", "path": "a", "pahts": 1}, "no option 'pahts'"),
        ({"kind": "scenes", "sede": 1}, "no option 'sede': did you mean 'seed'"),
        ({"kind": "scenes", "scene": {"zzz": 1}}, "no option 'zzz'"),
        ({"kind": "openmoji", "path": "nowhere"}, "run `unicom data prepare openmoji`"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key_and_the_fix(config, message):
    with pytest.raises(SourceError, match=message) as caught:
        open_source(config)
    assert "\n" not in str(caught.value)
