"""`unicom export` and the way back: what is written, what is refused, and that nothing is half."""

from __future__ import annotations

import ast
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from rich.console import Console
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    Qwen2ForCausalLM,
    SiglipVisionModel,
)

import unicom_jax.interop.pytorch
from tests.runs.workdirs import write_run
from unicom_jax.cli import main
from unicom_jax.config import ConfigError
from unicom_jax.exchange.code import code_of
from unicom_jax.exchange.export import export, read_size
from unicom_jax.exchange.imports import import_model
from unicom_jax.exchange.written import Options
from unicom_jax.inference import verify
from unicom_jax.interop.layouts.exported import OLD_NAMES, TWINS, UNICOM
from unicom_jax.interop.tensors import WeightsError, open_tensors
from unicom_jax.runs import weights
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.weights import Choice, load, stages_in_use

CODE_FOLDER = Path(unicom_jax.interop.pytorch.__file__).parent


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def back(folder: Path, workdir: Path) -> Path:
    import_model(folder, workdir, Console(quiet=True), dry_run=False)
    return workdir


def same_files(one: Path, other: Path, but: tuple[str, ...] = ()) -> bool:
    names = [
        sorted(p.name for p in folder.iterdir() if p.name not in but) for folder in (one, other)
    ]
    return names[0] == names[1] and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names[0]
    )


# ---- what is written --------------------------------------------------------------------------


def test_the_folder_holds_all_that_a_pytorch_user_expects(exported):
    names = {path.name for path in exported.iterdir()}
    assert names >= {
        "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json",
        "tokenizer_config.json", "model.safetensors.index.json", "README.md", *code_of(UNICOM),
    }  # fmt: skip
    assert len(list(exported.glob("model-*-of-*.safetensors"))) > 1
    description = json.loads((exported / "config.json").read_text())
    assert description["auto_map"]["AutoModel"] == "modeling_unicom.UnicomModel"
    assert description["dtype"] == "float32"


def test_tokenizer_and_image_processor_load_by_their_auto_classes(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    assert tokenizer.decode(tokenizer.encode("a red dot")) == "a red dot"
    processor = AutoImageProcessor.from_pretrained(exported, trust_remote_code=True)
    seen = processor(np.zeros((50, 40, 3), np.uint8))
    assert seen["image_grids"].tolist() == [[[2, 2]]] and seen["pixel_values"].shape == (1, 4, 768)


def test_a_script_without_jax_loads_it_and_gives_the_same(run, exported, capsys):
    arguments = [f"--checkpoint={run}", "--to=pytorch", "--overwrite", "--verify"]
    target = exported.with_name("verified")
    assert main(["export", *arguments, str(target)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in verify.LIMITS) and "too large" not in printed


def test_a_difference_over_its_limit_fails_and_names_the_output(run, exported, monkeypatch, capsys):
    found = dict.fromkeys(verify.LIMITS, 0.0) | {"captions": 3.0, "logits": float("nan")}

    def pretend(folder, reference, result):
        result.write_text(json.dumps(found))

    monkeypatch.setattr(verify, "reference_of", lambda generator: {})
    monkeypatch.setattr(verify, "_run_script", pretend)
    target = exported.with_name("differing")
    assert main(["export", f"--checkpoint={run}", "--to=pytorch", "--verify", str(target)]) == 1
    line = capsys.readouterr().err
    assert "differs in logits, captions and was not kept" in line and not target.exists()


def test_the_exported_code_imports_nothing_but_torch_transformers_numpy_and_pillow():
    allowed = {"__future__", "torch", "transformers", "numpy", "PIL", *sys.stdlib_module_names}
    for path in CODE_FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Try):  # an extra with a message of its own
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                assert name.partition(".")[0] in allowed | {"diffusers"}, f"{path.name}: {name}"
    written = {path.name for path in CODE_FOLDER.glob("*_unicom*.py")} - {"verify_unicom.py"}
    assert written == {name for twin in TWINS.values() for name in code_of(twin)}


def test_the_model_card_lists_parts_stages_and_scores(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    facts = {"steps": 7, "seconds": 90.0, "device": "1 x cpu", "parameters": {}}
    (workdir / "pretrain" / "stage.json").write_text(json.dumps(facts))
    scores = {"generation/all": 0.5, "generation/all.n": 32, "generation/all.low": 0.34}
    (workdir / "scores.json").write_text(json.dumps(scores))
    card = (export(workdir, tmp_path / "out", Options()) / "README.md").read_text()
    assert "| language model | " in card and "| pretrain | 7 | 4 |" in card
    assert "| generation/all | 0.5 | 0.34 to – | 32 | – | – |" in card
    scores["about"] = {"split": "test", "checkpoints": {"unified": "pretrain 7"}}
    (workdir / "scores.json").write_text(json.dumps(scores))
    card = (export(workdir, tmp_path / "same", Options()) / "README.md").read_text()
    assert "On the test split." in card and "| generation/all | 0.5 |" in card
    metadata = ModelCard(card).data
    assert metadata.pipeline_tag == "any-to-any" and metadata.license == "other"
    (result,) = metadata.eval_results
    assert (result.metric_type, result.metric_value) == ("generation/all", 0.5)
    scores["about"]["checkpoints"]["unified"] = "pretrain 5"
    (workdir / "scores.json").write_text(json.dumps(scores))
    card = (export(workdir, tmp_path / "other", Options()) / "README.md").read_text()
    assert "the scores of the run are of pretrain 5" in card and "generation/all" not in card
    assert 'AutoModel.from_pretrained("run", trust_remote_code=True)' in card


def test_no_folder_of_this_machine_is_named_in_an_export(tmp_path):
    places = {
        "codec__autoencoder__path": "small",
        "unified__init_from": "/home/someone/models/Qwen2.5-7B",
        "data__source__path": "~/pictures/mine",
    }
    folder = export(write_run(tmp_path / "run", **places), tmp_path / "out", Options())
    for path in folder.iterdir():
        if path.suffix in (".json", ".md"):
            text = path.read_text()
            assert not any(name in text for name in (str(tmp_path), "/home/", "someone", "~/"))
    config = json.loads((folder / "config.json").read_text())["run"]["config"]
    assert config["unified"]["init_from"] == "Qwen2.5-7B"
    assert config["codec"]["autoencoder"]["path"] == "given"
    assert ModelCard((folder / "README.md").read_text()).data.base_model is None


def test_the_card_names_the_models_of_the_hub_from_which_a_run_started(tmp_path):
    places = {
        "encoder__init_from": "/cache/hub/models--google--siglip2/snapshots/0123abcd",
        "unified__init_from": "hf://Qwen/Qwen2.5-7B@main/model",
        "codec__init_from": "/home/someone/compressor",
    }
    folder = export(write_run(tmp_path / "run", **places), tmp_path / "out", Options())
    found = ModelCard((folder / "README.md").read_text()).data.base_model
    assert sorted(found) == ["Qwen/Qwen2.5-7B", "google/siglip2"]


def test_the_code_and_the_run_keep_the_same_tensors_in_fp32(run, tmp_path):
    """In the file, and in a model that is loaded in half precision."""
    for dtype, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        folder = export(run, tmp_path / dtype, Options(dtype=dtype))
        model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype="auto")
        facts = open_tensors(folder).facts
        loaded = model.state_dict()
        assert facts.keys() == loaded.keys()
        for name, fact in facts.items():
            assert loaded[name].dtype == {"F32": torch.float32}.get(fact.dtype, kind), name
        written = {"bf16": "BF16", "fp16": "F16"}[dtype]
        assert {fact.dtype for fact in facts.values()} == {"F32", written}
        assert model.dtype == kind


def test_a_chat_template_that_a_run_was_given_is_kept_beside_the_exports_own(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    path = workdir / "tokenizer" / "tokenizer_config.json"
    given = {"chat_template": "{{ messages[0].content }}!", "eos_token": "<|im_end|>"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **given}))
    folder = export(workdir, tmp_path / "out", Options())
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    chat = [{"role": "user", "content": "hello"}]
    apply = functools.partial(tokenizer.apply_chat_template, chat, tokenize=False)
    assert apply() == "<|im_start|>hello" and apply(chat_template="original") == "hello!"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.padding_side == "left"
    language = AutoTokenizer.from_pretrained(export(workdir, tmp_path / "q", Options(to="qwen2")))
    assert language.apply_chat_template(chat, tokenize=False) == "hello!"
    back(folder, tmp_path / "back")
    stored = json.loads((tmp_path / "back" / "tokenizer" / "tokenizer_config.json").read_text())
    assert stored["chat_template"] == given["chat_template"]


def test_an_export_of_an_earlier_version_comes_back(run, exported, tmp_path):
    """Its statistics and queries had other names."""
    folder = shutil.copytree(exported, tmp_path / "old")
    old = {new: former for former, new in OLD_NAMES.items()}
    for shard in folder.glob("*.safetensors"):
        save_file({old.get(name, name): t for name, t in load_file(shard).items()}, shard)
    index = folder / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    weight_map = listing["weight_map"]
    listing["weight_map"] = {old.get(name, name): shard for name, shard in weight_map.items()}
    assert "latent_mean" in listing["weight_map"]
    index.write_text(json.dumps(listing))
    back(folder, tmp_path / "back")
    before, after = load(run)[2], load(tmp_path / "back")[2]
    chex.assert_trees_all_equal(before, after, strict=True)


# ---- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_there_and_back_and_there_again_changes_no_bit(run, tmp_path, dtype):
    options = Options(dtype=dtype, shard_bytes=60_000)
    first = export(run, tmp_path / "first", options)
    back(first, tmp_path / run.name)
    again = export(tmp_path / run.name, tmp_path / "again", options)
    assert same_files(first, again, but=("config.json",))
    one, other = (json.loads((folder / "config.json").read_text()) for folder in (first, again))
    ours, theirs = (description.pop("run")["config"] for description in (one, other))
    # What was imported is trained on by its last stage; the ones before are not trained again.
    assert (ours.pop("stages"), theirs.pop("stages")) == (
        ["encoder", "codec", "pretrain"],
        ["pretrain"],
    )
    assert ours == theirs and one == other
    if dtype == "fp32":
        before, after = load(run)[2], load(tmp_path / run.name)[2]
        chex.assert_trees_all_equal(before, after, strict=True)


def test_a_model_that_was_changed_and_saved_in_pytorch_comes_back(exported, tmp_path):
    model = AutoModel.from_pretrained(exported, trust_remote_code=True)
    with torch.no_grad():
        model.head.output.bias += 1.0
    model.save_pretrained(tmp_path / "tuned")
    params = load(back(tmp_path / "tuned", tmp_path / "back"))[2]
    expected = model.head.output.bias.detach().numpy()
    np.testing.assert_array_equal(params["unified"]["head"]["output"]["bias"], expected)


@pytest.mark.parametrize(
    "overrides",
    [
        {"unified__pathway": "query", "codec__compressor": "mlp"},
        {"codec__autoencoder__path": "small", "encoder__naflex": True},
    ],
    ids=["query", "autoencoder"],
)
def test_other_models_come_back_too(tmp_path, overrides):
    workdir = write_run(tmp_path / "run", **overrides)
    folder = export(workdir, tmp_path / "out", Options())
    back(folder, tmp_path / "back")
    before, after = load(workdir)[2], load(tmp_path / "back")[2]
    chex.assert_trees_all_equal(before, after, strict=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.update(run={}), ConfigError, "has no run.config"),
        (lambda d: d["run"].update(config=[]), ConfigError, "run.config is damaged"),
        (lambda d: d["run"]["config"]["codec"].pop("latent_dim"), ConfigError, "'latent_dim'"),
        (lambda d: d["language"].update(depth=9), ConfigError, "language does not agree"),
    ],
)
def test_a_description_that_cannot_lead_back_is_refused(exported, tmp_path, change, error, message):
    folder = shutil.copytree(exported, tmp_path / "copy")
    description = json.loads((folder / "config.json").read_text())
    change(description)
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(error, match=message):
        back(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_export_with_a_missing_shard_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    next(folder.glob("model-00002-*")).unlink()
    with pytest.raises(WeightsError, match="is missing"):
        back(folder, tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


# ---- choices ----------------------------------------------------------------------------------


def test_averaged_weights_go_out_unless_raw_ones_are_asked_for(run, tmp_path):
    folders = {
        kind: export(run, tmp_path / kind, Options(choice=Choice(kind))) for kind in ("ema", "raw")
    }
    ema, raw = (tensors(folder) for folder in folders.values())
    used = tensors(export(run, tmp_path / "used", Options()))
    changed = {name for name in ema if not np.array_equal(ema[name], raw[name])}
    assert all(np.array_equal(ema[name], used[name]) for name in ema)
    assert any(name.startswith("language_model.") for name in changed)
    assert not any(name.startswith("vision_model.") for name in changed)


def test_an_earlier_step_of_the_last_stage_goes_out_where_it_is_asked_for(tmp_path):
    workdir, other = (write_run(tmp_path / name) for name in ("run", "other"))
    stage = workdir / stages_in_use(workdir)["unified"][0] / "checkpoints"
    newer = shutil.copytree(stage / "7", stage / "9")
    shutil.rmtree(newer / "params")
    chosen = tensors(export(workdir, tmp_path / "out", Options(choice=Choice(step="7"))))
    expected = tensors(export(other, tmp_path / "expected", Options()))
    assert all(np.array_equal(chosen[name], expected[name]) for name in expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "of stage pretrain at step 7" in card and "Not evaluated." in card
    with pytest.raises(ConfigError, match="--step=7 .* --to=siglip2 does not write"):
        export(workdir, tmp_path / "none", Options(to="siglip2", choice=Choice(step="7")))
    with pytest.raises(CheckpointError, match="--step=8: .* none of this step; .* one of 7, 9"):
        export(workdir, tmp_path / "none", Options(choice=Choice(step="8")))


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("200mb", 2 * 10**8), ("1.5 kb", 1500), ("7", 7)]
)
def test_shard_sizes_are_read_with_their_units(text, size):
    assert read_size(text) == size


# ---- parts ------------------------------------------------------------------------------------


def test_the_encoder_is_a_siglip_of_transformers(run, tmp_path):
    folder = export(run, tmp_path / "siglip2", Options(to="siglip2"))
    model, info = SiglipVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.image_size == 32


def test_the_language_model_is_a_qwen_of_transformers_with_its_tokenizer(run, tmp_path):
    folder = export(run, tmp_path / "qwen2", Options(to="qwen2"))
    _, info = Qwen2ForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).encode("a red dot")


def test_the_autoencoder_goes_out_as_it_came_in(tmp_path):
    workdir = write_run(tmp_path / "run", codec__autoencoder__path="small")
    folder = export(workdir, tmp_path / "out", Options(to="autoencoder"))
    before, after = tensors(workdir / "given"), tensors(folder)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    diffusers = pytest.importorskip("diffusers")
    assert diffusers.AutoencoderKL.from_pretrained(folder).config.scaling_factor == 0.5


def test_a_part_reads_its_own_weights_only(run, tmp_path, monkeypatch):
    asked = []
    restore = weights.restore_params

    def record(workdir, stage, abstract, **options):
        asked.append((stage, options["parts"]))
        return restore(workdir, stage, abstract, **options)

    monkeypatch.setattr(weights, "restore_params", record)
    export(run, tmp_path / "language", Options(to="qwen2"))
    assert asked == [("pretrain", ("transformer",))]


def test_an_export_needs_no_torch(run, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from unicom_jax.exchange.export import export\n"
        "from unicom_jax.exchange.written import Options\n"
        f"export(Path({str(run)!r}), Path({str(tmp_path / 'out')!r}), Options())"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=CODE_FOLDER.parents[2])
    assert (tmp_path / "out" / "model.safetensors").exists()
