"""`tf.train.Example` records in ArrayRecord files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from data_pipelines.build import data_identity, open_examples
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sequences.mixture import entries_of
from data_pipelines.sources.chosen import having
from data_pipelines.sources.registry import open_source
from tests.data.samples import example
from tests.data.sources.formats import png, read_all, tf_example, write_tf_examples
from tests.tiny import tiny_config


def opened(path, **options):
    return open_source({"kind": "tf_example", "paths": path, "skip_broken": False, **options})


def test_pictures_and_texts_are_found_under_their_usual_names(tmp_path):
    texts = [b"a longer text", "grü".encode()]
    one = tf_example(image__encoded=[png(3)], image__caption=texts)
    source = opened(write_tf_examples(tmp_path / "a.array_record", one))
    assert source[0].captions == ("grü", "a longer text")
    assert (source[0].image == 3).all()
    assert not source.traits().any()


def test_features_of_other_names_are_chosen_by_the_configuration(tmp_path):
    for number in range(4):
        one = tf_example(photo=[png(number)], words=[b"gray"], image=[b""], text=[b"wrong"])
        write_tf_examples(tmp_path / f"{number}.array_record", one)
    config = tiny_config()
    source = {"kind": "tf_example", "path": str(tmp_path), "held_out": 0.0}
    config.data.source.update(source | {"image": "photo", "captions": "words"})
    examples = open_examples(config)
    assert [int(examples[i].image[0, 0, 0]) for i in range(4)] == [0, 1, 2, 3]
    assert examples[0].captions == ("gray",)
    assert len(data_identity(config)[""][0]) == 4


def test_a_feature_that_is_missing_is_named_with_those_that_are_there(tmp_path):
    path = write_tf_examples(
        tmp_path / "a.array_record", tf_example(image=[png(1)], photo=[b""], words=[b"w"])
    )
    there = "height, image, photo, words"
    with pytest.raises(SourceError, match=rf"no feature 'x': .*image to one of {there}"):
        opened(path, image="x")


def test_records_may_be_pictures_alone_or_texts_alone(tmp_path, caplog):
    pictures = write_tf_examples(tmp_path / "a.array_record", tf_example(image=[png(7)]))
    source = opened(pictures)
    assert read_all(source) == [(7, ())]
    assert len(having(source, ("image",))) == 1 and not len(having(source, ("image", "captions")))
    assert "no feature 'captions' or " in caplog.text and "another of height, image" in caplog.text
    texts = opened(write_tf_examples(tmp_path / "b.array_record", tf_example(text=[b"words"])))
    assert read_all(texts) == [(None, ("words",))]
    assert not len(having(texts, ("image",)))
    assert [e.task for e in entries_of({"text": 1.0}, texts)] == ["text"]
    with pytest.raises(ValueError, match="has image and captions, which the task 'text_to_image'"):
        entries_of({"text_to_image": 1.0}, texts)
    neither = write_tf_examples(tmp_path / "c.array_record", tf_example(words=[b"w"]))
    with pytest.raises(SourceError, match=r"no feature 'image' or .* to some of height, wo"):
        opened(neither)


def test_records_that_are_no_examples_are_refused_when_the_source_opens(tmp_path):
    from data_pipelines.sources.records import encode_example

    path = write_tf_examples(tmp_path / "a.array_record", encode_example(example(0)))
    with pytest.raises(SourceError, match=r"record 0: not a tf.train.Example"):
        opened(path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"image": []}, "0 values in 'image'"),
        ({"image": [b"junk"]}, "cannot read image"),
        ({"text": []}, "empty caption"),
        ({"text": [b"\xff"]}, "'text' is not UTF-8"),
    ],
)
def test_a_broken_record_is_named(tmp_path, fault, message):
    good = {"image": [png(1)], "text": [b"gray"]}
    source = opened(
        write_tf_examples(
            tmp_path / "a.array_record", tf_example(**good), tf_example(**good | fault)
        )
    )
    assert source[0].captions == ("gray",)
    with pytest.raises(RecordError, match=rf"a.array_record record 1: .*{message}"):
        source[1]


def test_reading_examples_never_imports_tensorflow(tmp_path):
    path = write_tf_examples(
        tmp_path / "a.array_record", tf_example(image=[png(1)], text=[b"gray"])
    )
    script = f"""
import sys
from data_pipelines.sources.registry import open_source
source = open_source({{"kind": "tf_example", "paths": {path!r}}})
print(source[0].captions, "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "('gray',) False\n", done.stderr
