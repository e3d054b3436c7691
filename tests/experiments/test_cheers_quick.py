"""The commands of `experiments/cheers_quick.py`, with a few steps of tiny shapes."""

from __future__ import annotations

import json

import jax
import pytest
from PIL import Image

from unicom_jax.cli import main
from unicom_jax.config.check import check_settings
from unicom_jax.config.files import resolve
from unicom_jax.core.module import iter_specs
from unicom_jax.families.build import build_autoencoder
from unicom_jax.planning.program import abstract_batch
from unicom_jax.training.groups import read_groups
from unicom_jax.training.stages.unified import unified_stage
from unicom_jax.training.state import check_freeze, split

TINY = {
    "data.source.size": 32,
    "data.threads": 1,
    "data.workers": 0,
    "encoder.vision.width": 32,
    "encoder.vision.depth": 1,
    "encoder.vision.heads": 2,
    "encoder.vision.mlp_dim": 32,
    "encoder.text.width": 32,
    "encoder.text.depth": 1,
    "encoder.text.heads": 2,
    "encoder.text.mlp_dim": 32,
    "autoencoder.widths": "(4,4,4)",
    "autoencoder.norm_groups": 2,
    "autoencoder.statistics_batches": 1,
    "unified.transformer.width": 32,
    "unified.transformer.depth": 1,
    "unified.transformer.heads": 2,
    "unified.transformer.kv_heads": 1,
    "unified.transformer.head_dim": 16,
    "unified.transformer.mlp_dim": 32,
    "unified.cheers.semantics.depth": 1,
    "unified.cheers.semantics.heads": 2,
    "unified.cheers.semantics.kv_heads": 1,
    "unified.cheers.details.heads": 2,
    "unified.cheers.details.kv_heads": 1,
    "pretrain.eval_every": 0,
    "evaluation.pictures": 3,
    "evaluation.prompts": 1,
    "evaluation.questions": 1,
    "evaluation.edits": 1,
    "evaluation.batch_size": 4,
    "sample.steps": 2,
    "sample.max_tokens": 2,
}
DECODER = 'pretrain.groups=({"match": "decoder/.*", "learning_rate": 0.1},)'
GATE = 'pretrain.groups=({"match": "head/gate/.*", "learning_rate": 0.02},)'
ABLATIONS = {
    "gate": ("unified.cheers.gate=False", "sft.groups=()", DECODER),
    "pixels": ("unified.cheers.pixels=False", GATE),
    "fold": ("unified.fold=1", "pretrain.sequence_length=640", "sft.sequence_length=640"),
}
STAGES = ("encoder", "autoencoder", "pretrain", "sft")
STEPS = {f"{stage}.{key}": 2 for stage in STAGES for key in ("steps", "batch_size")}
WARM = {f"{stage}.warmup_steps": 1 for stage in STAGES} | {
    f"{stage}.window_rows": 2 for stage in STAGES[2:]
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_flags_make_an_ablation_of_the_unified_stage(name):
    flags = [f"--config.{flag}" for flag in ABLATIONS[name]]
    config = resolve("experiments/cheers_quick.py", flags)
    config.data.vocab_size = 300
    check_settings(config, config.stages)
    for stage_name in ("pretrain", "sft"):
        stage = unified_stage(stage_name, config)
        specs = stage.module.specs()
        check_freeze(specs, config[stage_name].freeze)
        read_groups(config[stage_name].groups, specs)
        rows = config[stage_name].batch_size
        keys = jax.eval_shape(lambda rows=rows: jax.random.split(jax.random.key(0), rows))
        frozen = {"autoencoder": build_autoencoder(config).abstract()}
        batch = abstract_batch(config, stage_name)
        terms = jax.eval_shape(stage.loss, stage.module.abstract(), frozen, batch, keys)
        assert ("gate/t0.00" in terms) == (name != "gate")
        assert ("decoder" in specs) == (name != "pixels")
    slots = stage.module.images.shape_of(9)[0]
    assert slots == (9 if name == "fold" else 36)


def test_decoder_and_gate_train_at_rates_of_their_own_and_the_decoder_is_frozen_in_the_last_stage():
    config = resolve("experiments/cheers_quick.py", [])
    config.data.vocab_size = 300
    for name, wanted in (("pretrain", {"decoder": 0.1, "gate": 0.02}), ("sft", {"gate": 0.02})):
        stage = unified_stage(name, config)
        groups = read_groups(config[name].groups, stage.module.specs())
        found = {}
        for path, _ in iter_specs(split(stage.module.specs(), stage.freeze)[0]):
            part = path[0] if path[0] == "decoder" else path[1]
            if group := groups.of(path):
                found[part] = group.learning_rate
            else:
                assert part not in wanted
        assert found == wanted


@pytest.mark.slow
def test_cheers_is_trained_sampled_evaluated_and_reported_by_the_usual_commands(tmp_path, capsys):
    workdir, picture = tmp_path / "run", tmp_path / "drawn.png"
    small = [f"--config.{key}={value}" for key, value in {**TINY, **STEPS, **WARM}.items()]
    at = f"--workdir={workdir}"
    assert main(["train", "--config=experiments/cheers_quick.py", at, *small]) == 0
    printed = capsys.readouterr()
    said = (printed.out + printed.err).replace("\n", " ")
    for what, source in (("vision", "encoder"), ("decoder", "autoencoder")):
        assert f"pretrain: starts with {what} from the weights of {source}" in said
    assert "sft: starts from the weights of pretrain" in said
    checkpoint = f"--checkpoint={workdir}"
    assert main(["sample", checkpoint, "--prompt=a red circle", f"--out={picture}"]) == 0
    assert Image.open(picture).size == (48, 48)
    assert main(["sample", checkpoint, f"--image={picture}", "--ask=how many?"]) == 0
    edited = tmp_path / "edited.png"
    arguments = [f"--image={picture}", "--edit=make it blue", f"--out={edited}"]
    assert main(["sample", checkpoint, *arguments]) == 0 and edited.is_file()
    assert main(["evaluate", at]) == 0
    scores = json.loads((workdir / "scores.json").read_text(encoding="utf-8"))
    names = ("reconstruction/psnr", "reconstruction/kid", "generation/overall", "editing/success")
    assert all(scores[name] is not None for name in names)
    assert scores["reconstruction/psnr.untrained"] is not None
    assert main(["report", at]) == 0 and (workdir / "report.html").is_file()
