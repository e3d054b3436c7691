from __future__ import annotations

import json
import os
import tarfile

import numpy as np
import pytest

from data_pipelines.faults import SourceError
from data_pipelines.sources import openmoji_texts as texts
from data_pipelines.sources.openmoji import Settings, prepare_openmoji
from data_pipelines.sources.records import read_records
from data_pipelines.sources.registry import open_source

TONES = {"1F3FB": ("light", "#fadcbc"), "1F3FF": ("dark", "#6a462f")}


def square(colour: str) -> str:
    return (
        '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">'
        f'<rect x="18" y="18" width="36" height="36" fill="{colour}"/></svg>'
    )


def row(hexcode, annotation, group="people-body", subgroup="hands", tags="", more_tags=""):
    return {
        "hexcode": hexcode,
        "annotation": annotation,
        "tags": tags,
        "openmoji_tags": more_tags,
        "group": group,
        "subgroups": subgroup,
    }


def fake_drawings():
    """Hexcode -> (row, colour): a hand in three tones, two hearts, wrestlers that look the same."""
    rows = {"1F44B": (row("1F44B", "waving hand", tags="hand, hi", more_tags="hi, bye"), "#fcea2b")}
    for code, (tone, colour) in TONES.items():
        rows[f"1F44B-{code}"] = (row(f"1F44B-{code}", f"waving hand: {tone} skin tone"), colour)
        wrestlers = row(f"1F93C-{code}", f"people wrestling: {tone} skin tone")
        rows[f"1F93C-{code}"] = (wrestlers, "#fcea2b")
    for code, colour in (("2764", "red"), ("1F499", "blue")):
        heart = row(code, f"{colour} heart", "smileys-emotion", "heart", "love")
        rows[code] = (heart, colour)
    return rows


def make_package(root):
    (root / "color" / "svg").mkdir(parents=True)
    (root / "data").mkdir()
    drawings = fake_drawings()
    for hexcode, (_, colour) in drawings.items():
        (root / "color" / "svg" / f"{hexcode}.svg").write_text(square(colour))
    (root / "data" / "openmoji.json").write_text(json.dumps([r for r, _ in drawings.values()]))
    (root / "package.json").write_text('{"version": "17.0.0"}')
    (root / "LICENSE.txt").write_text("Attribution-ShareAlike 4.0 International")
    return root


@pytest.fixture
def package(tmp_path):
    return make_package(tmp_path / "package")


def prepare(output, package, **settings):
    return prepare_openmoji(output, package, Settings(**{"size": 16} | settings), progress=False)


def all_examples(output):
    return {example.key.removeprefix("openmoji/"): example for example in read_records(output)}


# --- what is written


def test_the_directory_holds_both_splits_with_licence_and_attribution(tmp_path, package):
    output = tmp_path / "out"
    prepared = prepare(output, package, eval_percent=50)
    assert prepared.train and prepared.eval
    for split, count in (("train", prepared.train), ("eval", prepared.eval)):
        source = open_source({"kind": "openmoji", "path": output, "split": split})
        assert len(source) == count
    assert "ShareAlike" in (output / "LICENSE.txt").read_text()
    notice = (output / "NOTICE.txt").read_text()
    assert "CC BY-SA 4.0" in notice and "openmoji.org" in notice and "16 x 16" in notice


def test_pictures_have_the_size_and_background_asked_for(tmp_path, package):
    prepare(tmp_path / "out", package, size=24, background="#00ff00")
    image = all_examples(tmp_path / "out")["2764"].image
    assert image.shape == (24, 24, 3)
    assert tuple(image[0, 0]) == (0, 255, 0) and tuple(image[12, 12]) == (255, 0, 0)


def test_a_skin_tone_edit_leads_to_exactly_the_drawing_of_that_tone(tmp_path, package):
    prepare(tmp_path / "out", package)
    examples = all_examples(tmp_path / "out")
    edits = {edit.instruction: edit for edit in examples["1F44B"].edits}
    assert edits.keys() == {"make the skin tone light", "make the skin tone dark"}
    dark = edits["make the skin tone dark"]
    np.testing.assert_array_equal(dark.target, examples["1F44B-1F3FF"].image)
    assert (dark.kind, dark.caption) == ("skin_tone", "waving hand, dark skin tone")


def test_a_colour_edit_leads_to_the_drawing_of_that_colour(tmp_path, package):
    prepare(tmp_path / "out", package)
    examples = all_examples(tmp_path / "out")
    (edit,) = examples["1F499"].edits
    assert (edit.instruction, edit.kind) == ("change blue to red", "recolour")
    np.testing.assert_array_equal(edit.target, examples["2764"].image)


def test_captions_name_the_drawing_then_add_group_and_tags(tmp_path, package):
    prepare(tmp_path / "out", package)
    short, long = all_examples(tmp_path / "out")["1F44B-1F3FF"].captions
    assert short == "waving hand, dark skin tone"
    # The variant has no tags of its own: those of its base, without duplicates.
    assert long == f"{short}; a drawing from people and body, hands; about hand, hi, bye"


def test_questions_have_the_answers_of_the_table(tmp_path, package):
    prepare(tmp_path / "out", package)
    examples = all_examples(tmp_path / "out")
    answers = {q.kind: q.answer for q in examples["1F44B"].questions if q.kind != "yes_no"}
    assert answers == {
        "name": "waving hand",
        "subgroup": "hands",
        "group": "people and body",
        "skin_tone": "yellow",
    }
    assert ("recolour", "blue") in {(q.kind, q.answer) for q in examples["1F499"].questions}


def test_yes_and_no_answers_are_balanced_and_no_is_another_family(tmp_path, package):
    prepare(tmp_path / "out", package)
    asked = [q for q in all_examples(tmp_path / "out")["1F44B"].questions if q.kind == "yes_no"]
    assert [(q.question, q.answer) for q in asked] == [
        ("Does this show: waving hand?", "yes"),
        ("Does this show: people wrestling?", "no"),
    ]


def test_variants_that_look_the_same_are_one_example_without_edits(tmp_path, package):
    prepare(tmp_path / "out", package)
    wrestlers = [e for k, e in all_examples(tmp_path / "out").items() if k.startswith("1F93C")]
    assert len(wrestlers) == 1
    assert wrestlers[0].edits == ()
    assert "skin_tone" not in {question.kind for question in wrestlers[0].questions}


def test_all_variants_of_a_drawing_fall_on_the_same_side(tmp_path, package):
    for percent in range(0, 101, 20):
        output = tmp_path / str(percent)
        prepare(output, package, eval_percent=percent)
        held_out = all_examples(output / "eval-00000-of-00001.array_record") if percent else {}
        hands = {key for key in held_out if key.startswith("1F44B")}
        hearts = held_out.keys() & {"2764", "1F499"}
        assert len(hands) in (0, 3) and len(hearts) in (0, 2)


# --- how it is written


def test_the_same_package_gives_the_same_bytes_as_directory_and_archive(tmp_path, package):
    archive = tmp_path / "openmoji.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(package, "package")
    prepare(tmp_path / "a", package, shards=2)
    prepare(tmp_path / "b", archive, shards=2)
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == sorted(os.listdir(tmp_path / "b"))
    assert sum(name.startswith("train-") for name in names) == 2
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failure_leaves_nothing_behind(tmp_path, package):
    (package / "color" / "svg" / "2764.svg").write_text("<svg")
    with pytest.raises(SourceError, match=r"2764.svg: cannot be drawn"):
        prepare(tmp_path / "out", package)
    assert os.listdir(tmp_path) == ["package"]


def test_a_prepared_directory_is_kept_and_needs_no_package(tmp_path, package):
    first = prepare(tmp_path / "out", package)
    assert prepare(tmp_path / "out", tmp_path / "no package") == first


@pytest.mark.parametrize("taken", ["other settings", "other files", "a file"])
def test_a_taken_directory_is_refused_with_the_fix(tmp_path, package, taken):
    output = tmp_path / "out"
    if taken == "other settings":
        prepare(output, package, size=8)
    elif taken == "other files":
        output.mkdir()
        (output / "mine.txt").write_text("mine")
    else:
        output.write_text("mine")
    with pytest.raises(SourceError, match=f"{output}: holds .*a new directory"):
        prepare(output, package)


# --- where the package comes from


def fake_npm(tmp_path, monkeypatch, script):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_without_a_package_npm_fetches_the_pinned_one(tmp_path, package, monkeypatch):
    with tarfile.open(tmp_path / "fake.tgz", "w:gz") as tar:
        tar.add(package, "package")
    check = 'test "$1 $2 $3" = "pack openmoji@17.0.0 --pack-destination"'
    fake_npm(tmp_path, monkeypatch, f'{check} && cp {tmp_path}/fake.tgz "$4/openmoji.tgz"')
    assert prepare(tmp_path / "out", None).version == "17.0.0"


def test_a_missing_npm_names_both_fixes(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=r"install Node.js, or get openmoji@17.0.0 elsewhere"):
        prepare(tmp_path / "out", None)


def test_a_failing_npm_is_reported_in_one_line(tmp_path, monkeypatch):
    fake_npm(tmp_path, monkeypatch, 'echo "npm error code ENOTFOUND" >&2; echo more >&2; exit 1')
    with pytest.raises(SourceError, match="npm error code ENOTFOUND.*pass its path") as caught:
        prepare(tmp_path / "out", None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["data/openmoji.json", "LICENSE.txt", "package.json"])
def test_an_incomplete_package_names_the_missing_file(tmp_path, package, missing):
    (package / missing).unlink()
    with pytest.raises(SourceError, match=missing) as caught:
        prepare(tmp_path / "out", package)
    assert "\n" not in str(caught.value)


def test_a_broken_archive_is_refused_by_name(tmp_path):
    (tmp_path / "broken.tgz").write_bytes(b"no archive")
    with pytest.raises(SourceError, match=r"broken.tgz: not a readable npm package"):
        prepare(tmp_path / "out", tmp_path / "broken.tgz")


# --- annotations


@pytest.mark.parametrize(
    ("annotation", "caption"),
    [
        ("waving hand", "waving hand"),
        ("waving hand: dark skin tone", "waving hand, dark skin tone"),
        ("man: dark skin tone, red hair", "man, red hair, dark skin tone"),
        ("hug: light skin tone, dark skin tone", "hug, light and dark skin tones"),
        ("flag: Suriname", "flag of Suriname"),
        ("keycap: 1", "keycap, 1"),
    ],
)
def test_annotations_become_plain_captions(annotation, caption):
    assert texts.caption(texts.Drawing("1", annotation, (), "objects", "tool")) == caption


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("man: red hair", "woman: dark skin tone, red hair"),
        ("people holding hands", "women holding hands: light skin tone, dark skin tone"),
        ("blue heart", "red heart"),
    ],
)
def test_variants_have_the_same_family(one, other):
    families = [texts.family(texts.Drawing("1", text, (), "a", "b")) for text in (one, other)]
    assert families[0] == families[1]


@pytest.mark.parametrize(("one", "other"), [("red apple", "red heart"), ("hot dog", "dog")])
def test_different_drawings_have_different_families(one, other):
    families = [texts.family(texts.Drawing("1", text, (), "a", "b")) for text in (one, other)]
    assert families[0] != families[1]
