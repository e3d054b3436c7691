"""BAGEL's three layouts of sample data, with our own contents, give the documents one expects."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from data_pipelines.batches import document_stream, unified_loader
from data_pipelines.sequences.show import show_batch
from tests.data.mixed import mixed_config
from tests.data.samples import tokenizer
from tests.data.sources.formats import png, write_jsonl, write_parquet
from unicom_jax.core.batch import Role

ASKED = [
    {"from": "human", "value": "<image>\nwhat is it?"},
    {"from": "gpt", "value": "a square"},
    {"from": "human", "value": "how gray?"},
    {"from": "gpt", "value": "very gray"},
]
STEPS = [["make it brighter", "more light"], ["darker again"]]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Parquet of text to image, Parquet of edit chains, JSONL of conversations."""
    folder = tmp_path_factory.mktemp("bagel")
    for name in ("t2i", "editing", "vlm/images"):
        (folder / name).mkdir(parents=True)
    captions = [json.dumps({"short": f"gray {i}", "long": f"a square, gray {i}"}) for i in range(8)]
    pictures = [png(10 * i) for i in range(8)]
    write_parquet(folder / "t2i" / "chunk_0.parquet", {"image": pictures, "captions": captions})
    chains = [[png(10 * i), png(10 * i + 100), png(10 * i + 50)] for i in range(8)]
    columns = {"image_list": chains, "instruction_list": [STEPS] * 8}
    write_parquet(folder / "editing" / "chunk_0.parquet", columns)
    for i in range(8):
        (folder / "vlm" / "images" / f"{i}.png").write_bytes(png(200 + i))
    rows = [{"image": f"{i}.png", "conversations": ASKED} for i in range(8)]
    vlm = write_jsonl(folder / "vlm" / "llava_ov_si.jsonl", rows)
    images = str(vlm.parent / "images")
    talk = {"kind": "conversations", "path": str(vlm), "images": images, "tasks": "document"}
    return mixed_config(
        [
            {"kind": "parquet", "path": str(folder / "t2i"), "tasks": "text_to_image"},
            {"kind": "parquet", "path": str(folder / "editing"), "tasks": "edit"},
            {**talk, "name": "vlm"},
        ],
        pretrain__window_documents=8,
        pretrain__mixture__visual_qa=0.0,
    )


def spelled(document, words):
    """The text of a document, without its marks; pictures as [look N], [clean N] and [draw N], with
    N their level of gray."""
    names = {Role.UNDERSTAND: "look", Role.CLEAN: "clean", Role.NOISY: "draw"}
    parts, ids = [], []
    for slot, role in enumerate(document.roles):
        if role == Role.TEXT:
            ids.append(int(document.tokens[slot]))
        elif document.image_token[slot] == 0:
            parts.append(words.decode(ids))
            index, ids = document.image_index[slot], []
            index = document.draws[index] if role == Role.NOISY else index
            parts.append(f"[{names[Role(role)]} {document.patches[index][0, 0]}]")
    return "".join([*parts, words.decode(ids)])


def test_each_layout_gives_its_documents(config):
    words = tokenizer()
    config.pretrain.cfg_dropout = 0.0
    stream = document_stream(config, "pretrain", words)
    found = defaultdict(set)
    for index in range(120):
        entry = stream.mixture.entries[stream.mixture.pick(index).entry]
        document, skipped = stream.document(index)
        assert not skipped
        found[entry.origin].add(spelled(document, words))
    for entry in found["t2i"]:
        level = int(entry.split("[draw ")[1][:-1]) // 10
        assert entry in {f"{text}gray {level}[draw {10 * level}]" for text in ("", "a square, ")}
    assert 8 < len(found["t2i"]) <= 16  # pictures times captions
    # A chain edits its first picture; a later target needs the instructions on the way too.
    printed = {"make it brighter": 100, "more light": 100, "make it brighter darker again": 50}
    edits = {
        f"[clean {level}]{words}[draw {level + more}]"
        for level in range(0, 80, 10)
        for words, more in printed.items()
    }
    assert found["editing"] <= edits and len(found["editing"]) > 12
    talks = {f"[look {level}]what is it?a squarehow gray?very gray" for level in range(200, 208)}
    spoken = {text.replace("\n", "") for text in found["vlm"]}
    assert spoken <= talks and len(spoken) > 5  # one is held out


def test_they_share_a_row_that_can_be_drawn(config, tmp_path):
    batch = unified_loader(config, "pretrain", tokenizer()).at(0)
    rows = [row for row in range(4) if len({*batch.parts[row][batch.roles[row] > 0]}) == 3]
    assert rows  # texts to image, edits and conversations
    path = show_batch(batch, tokenizer(), str(tmp_path / "row.png"), rows[0])
    assert (tmp_path / "row.png").stat().st_size > 10_000 and str(path).endswith("row.png")
