"""Plans of a tiny configuration agree with what is declared, traced and compiled."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace

import chex
import numpy as np
import pytest
from rich.console import Console

from tests.tiny import tiny_config
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.topology import name_devices, parse_topology
from unicom_jax.planning.estimate import abstract_mesh, estimate_stage
from unicom_jax.planning.plan import GIB, plan_stage
from unicom_jax.planning.program import abstract_batch, assume_flux, make_program
from unicom_jax.planning.search import changed, grid, nearest_fit, search
from unicom_jax.planning.table import exchange_table, parameter_line, plan_table, search_table
from unicom_jax.runs.released import build_stage
from unicom_jax.runs.stages import PARTS, Occurrence
from unicom_jax.training import run
from unicom_jax.training.flops import computed, step_flops

STAGES = ("encoder", "autoencoder", "codec", "pretrain")
H100 = parse_topology("h100:16")
REMAT = (("unified.transformer.remat", "full"),)


def rows(config, number):
    for stage in STAGES:
        config[stage].batch_size = number
    return config


def text_of(*tables):
    console = Console(width=120, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()


# ---- what is compiled -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled():
    """The pretrain step on one CPU device."""
    return plan_stage(tiny_config(), "pretrain", parse_topology("cpu:1"))


def test_a_compiled_step_computes_what_its_loss_is_traced_to(compiled):
    config = tiny_config()
    program = make_program(config, "pretrain", abstract_mesh("fsdp=-1", parse_topology("cpu:1")))
    loss = (program.stage, program.frozen, program.batch)
    assert compiled.all_pairs_flops == step_flops(*loss)
    assert compiled.model_flops == step_flops(*loss, 1.0, compiled.visible.share)
    # The program also computes what is only reported (the accuracy), and XLA drops some products.
    assert compiled.computed_flops == pytest.approx(computed(*loss)[0], rel=0.1)
    assert compiled.unknown_loops == 0


def test_a_compiled_step_holds_all_that_a_run_holds_read_or_not(compiled):
    assert compiled.peak >= sum(compiled.held.values())
    assert compiled.fits and not compiled.estimated


def test_no_time_is_claimed_for_a_cpu(compiled):
    assert (
        compiled.topology.capacity is compiled.step_seconds is compiled.mfu is compiled.days is None
    )
    assert "one device" in text_of(plan_table([compiled]))


# ---- shapes -----------------------------------------------------------------------------------


def test_the_abstract_batch_is_what_the_loader_makes():
    from data_pipelines.build import load_or_train_tokenizer
    from unicom_jax.runs.loading import stage_loader

    config = tiny_config()
    tokenizer = load_or_train_tokenizer(config, None)
    for stage in STAGES:
        with_arrays = next(stage_loader(config, stage, tokenizer))
        abstract = abstract_batch(config, stage)
        chex.assert_trees_all_equal_shapes_and_dtypes(with_arrays, abstract)


@pytest.mark.parametrize("stage", STAGES)
def test_weights_and_moments_of_a_device_are_its_share(stage):
    config = tiny_config(mesh="data=2,fsdp=8", encoder__freeze=("text/.*",))
    plan = estimate_stage(rows(config, 16), stage, H100)
    module = build_stage(config, stage)
    whole = 4 * module.param_count()
    assert whole / 8 <= plan.held["weights"] < whole / 3  # norms and odd sizes stay whole
    assert plan.held["moments"] <= 2 * plan.held["weights"] + 4096
    counted = sum(n for part, (n, _) in plan.parameters.items() if "given" not in part)
    assert counted == module.param_count()
    if stage == "encoder":
        assert plan.parameters["text"][1] == 0 < plan.parameters["vision"][1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_given_what_a_run_gives_it(stage, monkeypatch):
    config = tiny_config(mesh="fsdp=-1")

    def restore(config, workdir, label, subtree, mesh):
        return subtree.of(PARTS[subtree.part].build(config).abstract())

    monkeypatch.setattr(run, "_restore", restore)
    mesh = make_mesh("fsdp=-1")
    loaded = run._frozen_parts(Occurrence(stage), config, Path("nowhere"), mesh)
    program = make_program(config, stage, abstract_mesh("fsdp=-1", parse_topology("cpu:1")))
    chex.assert_trees_all_equal_structs(loaded, program.frozen)


def test_rows_that_do_not_divide_are_refused_with_a_number_that_does():
    with pytest.raises(ValueError, match="8 rows in 2 parts .* a multiple of 32"):
        estimate_stage(
            tiny_config(pretrain__batch_size=8, pretrain__accumulate=2), "pretrain", H100
        )


def test_an_autoencoder_that_is_not_here_is_taken_to_be_fluxs():
    config = tiny_config(codec__autoencoder__path="nowhere/vae")
    assert "planned with the sizes of FLUX.1's" in assume_flux(config)
    assert config.codec.autoencoder.facts.sizes.latent_channels == 16
    assert assume_flux(config) == assume_flux(tiny_config()) == ""


# ---- estimates --------------------------------------------------------------------------------


def plan_of(topology=H100, **overrides):
    return estimate_stage(rows(tiny_config(**overrides), 32), "pretrain", topology)


def test_remat_and_parts_of_a_batch_need_less_memory_and_remat_more_products():
    plain, full, parts = (
        plan_of(**overrides)
        for overrides in (
            {},
            {"unified__transformer__remat": "full"},
            {"pretrain__accumulate": 2},
        )
    )
    assert full.peak < plain.peak and parts.peak < plain.peak
    assert full.computed_flops > plain.computed_flops
    assert full.model_flops == plain.model_flops


def test_exchanges_follow_from_the_mesh():
    found = {
        mesh: {(one.kind, one.axes, one.far > 0) for one in plan_of(mesh=mesh).roofline.exchanges}
        for mesh in ("data=16", "fsdp=16", "data=2,fsdp=8", "fsdp=8,tensor=2")
    }
    gather, scatter = ("all-gather", ("fsdp",)), ("reduce-scatter", ("fsdp",))
    assert found["data=16"] == {("all-reduce", ("data",), True)}
    assert found["fsdp=16"] == {(*gather, True), (*scatter, True)}
    assert found["data=2,fsdp=8"] == {
        (*gather, False), (*scatter, False), ("all-reduce", ("data",), True),
    }  # fmt: skip
    assert ("all-reduce", ("tensor",), False) in found["fsdp=8,tensor=2"]


def test_time_follows_from_the_slowest_term():
    plan = plan_of()
    accelerator, terms = H100.accelerator, plan.roofline.terms
    # Everything is fp32 here, and H100 multiplies such numbers outside of its tensor cores.
    assert terms["compute"] == pytest.approx(plan.computed_flops / accelerator.fp32)
    assert plan.step_seconds == max(terms.values())
    assert plan.mfu == pytest.approx(
        plan.model_flops / plan.step_seconds / (16 * accelerator.flops)
    )
    assert plan.days == pytest.approx(plan.step_seconds * plan.steps / 86400)


def test_slices_have_to_be_in_the_mesh():
    two = parse_topology("v6e:2x2", 2)
    assert dict(abstract_mesh("auto", two).shape)["slice"] == 2
    with pytest.raises(ValueError, match="has slice=1, but there are 2 slices; write slice=2"):
        abstract_mesh("fsdp=-1", two)


# ---- looking for better settings --------------------------------------------------------------


def device(kind, **where):
    return SimpleNamespace(device_kind=kind, **where)


@pytest.mark.parametrize(
    ("devices", "name"),
    [
        ([device("NVIDIA H200")] * 4, ("h200:4", 1)),
        (
            [device("TPU v5 lite", coords=(x, y, 0)) for x in range(2) for y in range(4)],
            ("v5e:2x4", 1),
        ),
        (
            [device("TPU v5p", coords=(x, 2, 0), slice_index=k) for x in (2, 3) for k in (0, 1)],
            ("v5p:2x1x1", 2),
        ),
        ([device("cpu")], None),
    ],
)
def test_devices_that_are_here_have_the_name_by_which_they_are_planned_for(devices, name):
    assert name_devices(devices) == name
    if name:
        topology = parse_topology(*name)
        assert topology.accelerator and topology.devices == len(devices)


def test_a_search_ranks_what_fits_by_the_time_of_a_token():
    config = rows(tiny_config(), 16)
    some = [values for values in grid(config, "pretrain", H100) if "none" in dict(values).values()]
    found = search(config, "pretrain", H100, 0, settings=some)
    assert 4 < len(found) < len(some) and all(setting.plan.estimated for setting in found)
    times = [setting.seconds_a_token for setting in found if setting.plan.fits]
    assert times == sorted(times)
    assert "accumulate" in text_of(search_table("pretrain", found))
    assert all(flag.startswith("--config.") for flag in found[0].flags.split(" "))


@pytest.mark.slow
def test_the_nearest_setting_that_fits_changes_least():
    config = rows(tiny_config(), 64)
    plan = estimate_stage(config, "pretrain", H100)
    short = dataclasses.replace(plan, peak=plan.topology.capacity * 1.01)
    assert nearest_fit(config, short).values == REMAT
    full = estimate_stage(changed(config, REMAT), "pretrain", H100)
    factor = 1.2 * plan.peak / full.peak  # more than remat alone saves
    shorter = nearest_fit(config, dataclasses.replace(plan, peak=plan.topology.capacity * factor))
    assert ("unified.transformer.remat", "full") in shorter.values
    assert dict(shorter.values)["pretrain.accumulate"] > 1
    assert nearest_fit(config, dataclasses.replace(plan, peak=1e6 * GIB * GIB)) is None


def test_a_change_leaves_the_configuration_alone():
    config = tiny_config()
    assert changed(config, (("pretrain.accumulate", 4),)).pretrain.accumulate == 4
    assert config.pretrain.accumulate == 1


# ---- tables -----------------------------------------------------------------------------------


def test_the_table_says_what_is_estimated_and_what_fits():
    plan = plan_of()
    text = text_of(plan_table([plan, plan]), exchange_table(plan))
    assert "16 devices, h100:16 (estimated, nothing was compiled)" in text
    assert "fsdp=16" in text and "all-gather" in text and " NO " not in text
    tight = dataclasses.replace(plan, peak=100 * GIB)
    assert "NO" in text_of(plan_table([tight])).split("fits")[1].splitlines()[0]
    assert parameter_line(plan).startswith("pretrain: ")
    total = sum(np.array(list(plan.parameters.values()))[:, 1])
    assert f"{total / 1e3:.3g} K trained" in parameter_line(plan)
