"""`data.sources`: a tuple of tables, each of whose keys is declared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_pipelines.sources.configured import part_weights, picture_sources
from experiments import base
from tests.tiny import tiny_config
from unicom_jax.config import ConfigError, apply_overrides, from_json, load_config, to_json
from unicom_jax.config.check import check_settings
from unicom_jax.config.explain import explain, reference_page
from unicom_jax.config.files import check_values
from unicom_jax.config.keys.data import SOURCE, SOURCES
from unicom_jax.config.schema import complete

STAGES = ("encoder", "codec", "pretrain")
PHOTOS = {"kind": "folder", "path": "photos", "tasks": {"text_to_image": 3, "edit": 1}}
WORDS = {"kind": "documents", "path": "words", "tasks": "document", "weight": 0.25}


def config_of(*sources, **overrides):
    default = SOURCE.keys["size"].default
    config = tiny_config(**{"data__source__size": default, **overrides})
    config.data.sources = sources
    check_values(config)
    return config


def mixed(*sources, **overrides):
    """As `config_of`, whose stages have no tasks of their own."""
    none = dict.fromkeys(("text_to_image", "visual_qa", "edit"), 0.0)
    shares = {f"pretrain__mixture__{task}": share for task, share in none.items()}
    return config_of(*sources, **{**shares, **overrides})


def test_an_item_gets_the_defaults_of_the_keys_that_it_leaves_out():
    photos, words = config_of(PHOTOS, WORDS).data.sources
    assert photos.keys() == words.keys() == SOURCES.fields.keys()
    assert (photos["held_out"], photos["weight"], photos["stages"]) == (0.05, 1.0, ())
    assert photos["tasks"] == {"edit": 1.0, "text_to_image": 3.0}
    assert words["tasks"] == {"document": 1.0} and words["weight"] == 0.25


def test_tasks_may_be_one_several_or_shares_in_any_order():
    tasks = ("edit", ("edit", "text"), {"text": 2, "edit": 1})
    found = [config_of({**PHOTOS, "tasks": one}).data.sources[0]["tasks"] for one in tasks]
    assert found == [{"edit": 1.0}, {"edit": 1.0, "text": 1.0}, {"edit": 1.0, "text": 2.0}]
    assert list(found[2]) == ["edit", "text"]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({**PHOTOS, "wieght": 2}, r"unknown key data.sources\[0\].wieght; did you mean .*weight\?"),
        ({**PHOTOS, "zzz": 2}, r"unknown key data.sources\[0\].zzz; choose kind, path"),
        ({"path": "photos"}, r"data.sources\[0\] lacks 'kind'; give it, one of scenes, array_rec"),
        ({**PHOTOS, "kind": "foldr"}, r"data.sources\[0\].kind='foldr' is unknown; choose scenes"),
        ({**PHOTOS, "weight": 0}, r"data.sources\[0\].weight=0: give above 0"),
        ({**PHOTOS, "weight": "a"}, r"data.sources\[0\].weight='a': expects a number"),
        ({**PHOTOS, "held_out": 1}, r"data.sources\[0\].held_out=1: give at least 0 and below"),
        ({**PHOTOS, "path": "az://b/c"}, r"data.sources\[0\].path=az://b/c: only paths on file"),
        ({**PHOTOS, "tasks": "edits"}, r"data.sources\[0\].tasks: 'edits' is unknown; did you me"),
        ({**PHOTOS, "tasks": {"edit": -1}}, r"tasks\['edit'\]=-1: give at least 0"),
        ({**PHOTOS, "tasks": {"edit": 0}}, r"tasks={'edit': 0} is 0 for all; give one of them a"),
        ({**PHOTOS, "stages": (3,)}, r"data.sources\[0\].stages=\(3,\): expects a tuple"),
        ("photos", r"data.sources\[0\]='photos': expects a dict of kind, path"),
    ],
)
def test_a_fault_of_an_item_is_named_with_its_place(item, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(item)
    assert "\n" not in str(caught.value)


def test_a_configuration_file_names_the_file_with_the_fault(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from experiments import base\n\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.data.sources = ({'kind': 'folder', 'pth': 'photos'},)\n    return c\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=r"mine.py: unknown key data.sources\[0\].pth; did you m"):
        load_config(str(file))


# ---- overrides and JSON ------------------------------------------------------------------------


def test_all_items_or_one_field_can_be_set_from_the_command_line():
    config = base.get_config()
    apply_overrides(
        config,
        [
            "--config.data.sources=({'kind':'folder','path':'a'},{'kind':'scenes'})",
            "--config.data.sources[0].path=/data/2024",
            "--config.data.sources[1].weight=2",
            "--config.data.sources[1].tasks=edit,text",
            "--config.data.sources[0].tasks={'text_to_image':3}",
            "--config.data.sources[0].stages=pretrain",
        ],
    )
    first, second = config.data.sources
    assert (first["path"], first["tasks"], first["stages"]) == (
        "/data/2024",
        {"text_to_image": 3.0},
        ("pretrain",),
    )
    assert (second["weight"], second["tasks"]) == (2.0, {"edit": 1.0, "text": 1.0})


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("data.sources[2].path=a", r"--config.data.sources\[2\].path: data.sources has 1 items, c"),
        ("data.sources[0].pth=a", r"unknown key data.sources\[0\].pth; did you mean .*\.path\?"),
        ("data.sources[0].weight=-1", r"data.sources\[0\].weight=-1: give above 0"),
        ("data.sources[0]=a", "unknown key"),
        ("seed[0].path=a", "unknown key"),
    ],
)
def test_an_override_of_an_item_that_cannot_be_is_refused(flag, message):
    with pytest.raises(ConfigError, match=message):
        apply_overrides(config_of(PHOTOS), [f"--config.{flag}"])


def test_sources_survive_json_and_get_the_keys_that_came_after_them():
    config = config_of(PHOTOS, WORDS)
    stored = json.loads(to_json(config))
    assert from_json(stored).data.sources == config.data.sources
    for item in stored["data"]["sources"]:
        del item["held_out"], item["stages"]
    older = complete(stored)["data"]["sources"]
    assert [item["held_out"] for item in older] == [0.0, 0.0]  # what runs did before that key
    assert [item["stages"] for item in older] == [(), ()]


def test_a_run_from_before_there_were_several_sources_has_one():
    stored = json.loads(to_json(tiny_config()))
    for name in ("sources", "weight_unit"):
        del stored["data"][name]
    completed = complete(stored)
    assert completed["data"]["sources"] == () and completed["data"]["weight_unit"] == "documents"


# ---- explained ---------------------------------------------------------------------------------


def test_explain_teaches_the_list_and_each_of_its_keys():
    text = explain("data.sources")
    assert all(f"    {field} " in text for field in SOURCES.fields)
    assert "[required]" in text and "--config.data.sources[0].FIELD=VALUE" in text
    for name in ("data.sources.weight", "data.sources[1].weight"):
        assert "above 0" in explain(
            name
        ) and "Share of the source in what a stage reads" in explain(name)
    with pytest.raises(ConfigError, match="unknown key"):
        explain("data.sources.wight")
    assert "| `data.sources[i].weight` | `1.0` | above 0 |" in reference_page()


# ---- docs --------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_has_the_shares_that_it_says():
    page = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.S)
    (example,) = [text for text in examples if "config.data.sources = " in text]
    config = mixed()
    exec(example, {"config": config})
    check_values(config)
    check_settings(config, STAGES)
    weights = part_weights(config, "pretrain")
    drawn = sum(weight for (_, task), weight in weights.items() if task == "text_to_image")
    shares = weights["books", "text"], drawn, weights["web", "image_to_text"]
    assert shares == pytest.approx((0.25, 0.45, 0.1)) and sum(weights.values()) == pytest.approx(1)
    assert len(picture_sources(config, "codec")) == 3 and ("llava", "visual_qa") in weights


# ---- what goes together ------------------------------------------------------------------------


def test_sources_with_tasks_need_no_mixture_and_others_take_that_of_the_stage():
    check_settings(mixed(PHOTOS, WORDS), STAGES)
    check_settings(config_of(WORDS, {"kind": "scenes"}), STAGES)
    check_settings(mixed(PHOTOS, WORDS, pretrain__eval_by_source=True), STAGES)
    check_settings(mixed(PHOTOS, {**PHOTOS, "name": "twice", "weight": 2.0}), STAGES)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            lambda: mixed({"kind": "scenes"}),
            "pretrain.mixture is 0 for .*, or give each",
        ),
        (
            lambda: config_of(PHOTOS, WORDS),
            "pretrain.mixture.edit does nothing, because every source",
        ),
        (
            lambda: mixed({**PHOTOS, "stages": ("pretrain",)}),
            "none of data.sources is for stage 'encoder'",
        ),
        (
            lambda: mixed({**PHOTOS, "stages": ("pretrian",)}),
            r"data.sources\[0\].stages: 'pretrian' is unknown; stages are encoder",
        ),
        (
            lambda: mixed(PHOTOS, data__source__path="photos"),
            "data.source.path='photos' does nothing beside data.sources; set it to ''",
        ),
        (
            lambda: mixed(PHOTOS, data__source__size=7),
            "data.source.size=7 does nothing beside data.sources",
        ),
        (
            lambda: mixed(PHOTOS, pretrain__eval_by_source=True, data__packed="rows"),
            "pretrain.eval_by_source=True makes rows of each source, and data.packed has rows of",
        ),
        (
            lambda: tiny_config(pretrain__eval_by_source=True),
            "pretrain.eval_by_source=True needs data.sources",
        ),
        (
            lambda: mixed(PHOTOS, {**PHOTOS, "name": "b", "held_out": 0.2}),
            r"data.sources\[1\].held_out=0.2, but data.sources\[0\] reads the same data with 0.05",
        ),
        (
            lambda: mixed(WORDS, {**WORDS, "name": "b", "kind": "text", "piece": 9}),
            r"data.sources\[1\].piece=9, but data.sources\[0\] reads the same data with 0, so one",
        ),
        (
            lambda: mixed({**PHOTOS, "kind": "scenes"}, data__scenes__shapes=()),
            "data.scenes.shapes is empty",
        ),
    ],
)
def test_settings_that_do_not_go_with_the_sources_are_refused(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_settings(config(), STAGES)
    assert "\n" not in str(caught.value)
