"""The exported PyTorch model is the same function as ours, whatever its configuration."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModel

from data_pipelines.build import image_policy
from data_pipelines.images import prepare
from data_pipelines.segments import DRAWN, SOURCE, UNDERSTOOD, Image, Text
from data_pipelines.sequences.sequence import VISION_START, build_prefix
from tests.data.samples import picture
from tests.exchange.log_probs import both_log_probs
from tests.exchange.own_types import theirs
from tests.families.documents import ALL, PACKED, documents, give_noise, inputs
from tests.runs.workdirs import write_run
from unicom_jax.core.batch import Role
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.verify import LIMITS, reference_of
from unicom_jax.interop.layouts import unicom
from unicom_jax.interop.mapping import places
from unicom_jax.interop.pytorch.image_processing_unicom import UnicomImageProcessor
from unicom_jax.interop.pytorch.verify_unicom import differences
from unicom_jax.runs import weights

# Each holds several choices that do not meet in the others.
CONFIGURATIONS = {
    "transfusion": {
        "unified__transformer__tied_head": False,
        "unified__transformer__logit_softcap": 2.0,
        "unified__time_shift": 0.0,
        "sample__steps": 3,
        "sample__guidance_interval": (0.2, 0.5),
    },
    "query": {
        "unified__pathway": "query",
        "unified__understanding": "latents",
        "unified__transformer__qkv_bias": False,
        "unified__transformer__qk_norm": True,
        "unified__transformer__norm_eps": 1e-5,
        "unified__transformer__rope_scaling": "yarn",
        "unified__transformer__rope_factor": 4.0,
        "unified__transformer__rope_length": 64,
        "codec__compressor": "mlp",
    },
    "pool": {
        "data__image_size": 64,
        "unified__understanding": "sequence_concat",
        "unified__edit_source": "both",
        "unified__head__kind": "adaln",
        "unified__head__depth": 2,
        "unified__prediction": "data",
        "codec__compressor": "pool",
        "codec__pool": 2,
    },
    "naflex": {
        "data__policy": "naflex",
        "data__max_tokens": 6,
        "encoder__naflex": True,
        "unified__understanding": "channel_concat",
        "unified__edit_source": "features",
        "unified__edit_words": "before",
        "unified__head__kind": "mlp",
        "codec__compressor": "identity",
    },
    "flux": {
        "codec__autoencoder__path": "small",
        "codec__decoder__kind": "flux",
        "codec__decoder__flux__channels": 256,
        "codec__decoder__flux__double_depth": 1,
        "codec__decoder__flux__single_depth": 1,
        "codec__decoder__flux__heads": 2,
        "codec__decoder__flux__head_dim": 16,
        "codec__decoder__flux__context_dim": 32,
        "codec__decoder__flux__rope_dims": (4, 6, 6),
        "codec__decoder__flux__guidance_embeds": True,
        "codec__decoder__flux__guidance": 2.0,
    },
    "sd3": {
        "codec__autoencoder__path": "small",
        "codec__decoder__kind": "sd3",
        "codec__decoder__sd3__depth": 3,
        "codec__decoder__sd3__dual_depth": 1,
        "codec__decoder__sd3__heads": 2,
        "codec__decoder__sd3__head_dim": 16,
        "codec__decoder__sd3__context_dim": 32,
        "codec__decoder__sd3__position_side": 5,
    },
    "autoencoder": {
        "data__policy": "bucket",
        "data__bucket_step": 16,
        "encoder__naflex": True,
        "codec__autoencoder__path": "statistics",
    },
}


def load(folder, **options):
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **options)


@pytest.fixture(scope="module")
def model(exported):
    return load(exported)


@pytest.fixture(scope="module")
def generator(run):
    return Generator.load(run)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_output_is_that_of_jax(name, tmp_path):
    workdir = write_run(tmp_path / "run", **CONFIGURATIONS[name])
    folder = export(workdir, tmp_path / name, Options())
    reference = {
        key: np.asarray(value) for key, value in reference_of(Generator.load(workdir)).items()
    }
    model = load(folder)
    found = differences(model, reference)
    assert found.keys() == LIMITS.keys()
    missed = {output: value for output, value in found.items() if not value <= LIMITS[output][0]}
    assert not missed


def at_slots(batch, prepared, noised) -> dict[str, np.ndarray]:
    """What the exported model takes of the pictures: arrays over slots, looked up one by one."""
    shape = batch.roles.shape
    found = {
        "features": np.zeros((*shape, prepared.features.shape[-1]), np.float32),
        "latents": np.zeros((*shape, prepared.latents.shape[-1]), np.float32),
        "target": np.zeros((*shape, prepared.latents.shape[-1]), np.float32),
        "time": np.ones(shape, np.float32),
        "places": np.zeros((*shape, 2), np.int32),
    }
    for row, slot in zip(*np.nonzero(batch.roles > Role.TEXT), strict=True):
        image, token = batch.image_index[row, slot], batch.image_token[row, slot]
        if noisy := batch.roles[row, slot] == Role.NOISY:
            draw, image = image, batch.draws[row, image]
            found["time"][row, slot] = noised.time[row, draw]
            found["target"][row, slot] = (noised.clean - noised.noise)[row, draw, token]
        found["features"][row, slot] = prepared.features[row, image, token]
        latents = noised.noisy[row, draw] if noisy else prepared.latents[row, image]
        found["latents"][row, slot] = latents[token]
        found["places"][row, slot] = divmod(token, batch.grids[row, image, 1])
    return found


def test_the_gradients_of_language_model_and_head_are_those_of_jax(run, model, monkeypatch):
    config, tokenizer, params = weights.load(run)
    module, params = unicom.of_run(config), params["unified"]
    pathway = module.unified
    give_noise(monkeypatch)
    sequence = Generator(config, tokenizer, {"unified": params}).sequence
    batch, prepared, draws = inputs(documents(ALL, sequence), PACKED, sequence)

    def loss(params):
        terms = pathway.loss_terms(params, batch, prepared, draws)
        return 5.0 * terms["flow"][0] + terms["text"][0]

    expected_loss, expected = jax.jit(jax.value_and_grad(loss))(params)

    noised = jax.jit(pathway.images.noise)(prepared, batch.draws, draws)
    prepared, noised = jax.device_get((prepared, noised))  # looked up one by one
    slots = at_slots(batch, prepared, noised)

    def tensor(x):
        return torch.from_numpy(np.array(x))

    mask = batch.mask
    intervals = [mask.context_start, mask.context_stop, mask.span_start, mask.span_stop]
    model.zero_grad()
    out = model.forward_slots(
        tensor(batch.tokens).long(),
        positions=tensor(batch.positions),
        intervals=tensor(np.stack(intervals, -1)),
        roles=tensor(batch.roles),
        **{name: tensor(values) for name, values in slots.items() if name != "target"},
    )
    error = (out.velocity - tensor(slots["target"])).square().mean(-1)
    nll = torch.nn.functional.cross_entropy(
        out.logits.flatten(0, 1), tensor(batch.targets).long().flatten(), reduction="none"
    )
    total = 5.0 * (error * tensor(batch.roles == Role.NOISY)).sum()
    total = total + (nll * tensor(batch.target_weights).flatten()).sum()
    total.backward()
    np.testing.assert_allclose(total.item(), expected_loss, rtol=1e-5)

    parameters, compared = dict(model.named_parameters()), 0
    flat = unicom_paths(expected)
    for name, place in places(unicom.table(module), module.specs()).items():
        if not place.rule.paths or not place.rule.paths[0].startswith("unified/"):
            continue
        ours = place.join(lambda path, layer: layer_of(flat[path], layer))
        theirs = parameters[name].grad.numpy()
        np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max(), err_msg=name)
        compared += 1
    assert compared == len([name for name, p in parameters.items() if p.grad is not None])


def test_log_probabilities_of_captions_are_those_of_jax(generator, model):
    ours, theirs = both_log_probs(generator, model)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5)
    assert np.ptp(ours) > 1e-2  # the tokens are not all alike likely


def unicom_paths(tree, prefix="unified"):
    if not isinstance(tree, dict):
        return {prefix: np.asarray(tree)}
    return {
        path: leaf
        for name, node in tree.items()
        for path, leaf in unicom_paths(node, f"{prefix}/{name}").items()
    }


def layer_of(weight, layer):
    return weight if layer is None else weight[layer]


# ---- the sequence format ----------------------------------------------------------------------

TALK = (
    [Image(picture(1, 40, 24), UNDERSTOOD), Text("how many dots?")],
    [Image(picture(2, 32, 32), SOURCE), Text("paint it green")],
    [
        Text("a red dot"),
        Text("a dot first", supervised=True),
        Image(picture(3, 20, 64), DRAWN),
        Text("now a blue square"),
    ],
    [Text("")],
)


@pytest.mark.parametrize("segments", TALK)
@pytest.mark.parametrize(
    "understanding, source, words",
    [("features", "latents", "after"), ("sequence_concat", "both", "before")],
)
def test_a_conversation_is_written_slot_for_slot_as_in_jax(
    generator, model, segments, understanding, source, words, monkeypatch
):
    changed = {"understanding": understanding, "edit_source": source, "edit_words": words}
    sequence = generator.sequence.__class__(**{**vars(generator.sequence), **changed})
    template = {**model.config.sequence, **changed}
    monkeypatch.setattr(model.processor, "sequence", template)
    expected = build_prefix(segments, generator.tokenizer, sequence, VISION_START)
    prefix = model.processor.prefix([theirs(model, s) for s in segments], VISION_START)
    np.testing.assert_array_equal(prefix.tokens, expected.tokens)
    np.testing.assert_array_equal(prefix.positions, expected.positions)
    np.testing.assert_array_equal(prefix.sees, expected.mask.context_stop)
    assert prefix.next_position == expected.next_position
    roles = np.full(len(expected), Role.TEXT)
    for block in prefix.blocks:
        roles[block.start : block.start + block.grid[0] * block.grid[1]] = block.role
    np.testing.assert_array_equal(roles, expected.roles)


@pytest.mark.parametrize("policy", ["fixed", "naflex", "bucket", "bucket_walk"])
@pytest.mark.parametrize("shape", [(32, 32), (31, 57), (200, 40), (5, 300)])
def test_pictures_are_resized_to_the_bit_as_in_jax(model, generator, policy, shape):
    config = {**generator.config, "data": {**generator.config["data"], "policy": policy}}
    config["data"] |= {"max_tokens": 12, "bucket_step": 32, "image_size": 64}
    ours = image_policy(config)
    processor = UnicomImageProcessor(
        policy=policy, size=64, patch=16, pool=2, max_tokens=12, step=32
    )
    image = picture(7, *shape)
    expected = prepare(image, ours, 16, 2)
    np.testing.assert_array_equal(processor.prepare(image), expected)
    assert processor.max_patches == ours.max_patches(16, 2)


def test_words_may_not_contain_the_marks_of_turns(model):
    with pytest.raises(ValueError, match="contains tokens that mark turns"):
        model.draw(["a red <|im_end|> dot"])


# ---- use --------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_picture_as_in_jax_with_a_plan_and_heun(model, generator):
    options = {"seed": 5, "steps": 3, "sampler": "heun", "guidance": 1.0, "think": True}
    ours = generator.draw(["a red dot", "a blue square"], **options)
    theirs = model.draw(["a red dot", "a blue square"], **options)
    for one, other in zip(ours, theirs, strict=True):
        assert np.abs(one.image.astype(int) - np.asarray(other, int)).max() <= 2


def test_a_shift_by_the_pictures_own_size_is_that_of_jax(tmp_path):
    run = write_run(
        tmp_path / "run", data__policy="naflex", encoder__naflex=True, unified__time_shift=0.0
    )
    generator, model = Generator.load(run), load(export(run, tmp_path / "exported", Options()))
    options = {"size": (32, 128), "steps": 3, "guidance": 1.0}
    (ours,), (theirs,) = (
        generator.draw(["a red dot"], **options),
        model.draw(["a red dot"], **options),
    )
    assert np.abs(ours.image.astype(int) - np.asarray(theirs, int)).max() <= 2


def test_batches_change_nothing(model):
    prompts = ["a red dot", "a red dot on the left of a large blue square", "dots"]
    whole, single = (model.draw(prompts, batch_size=size) for size in (3, 1))
    for one, other in zip(whole, single, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    images = [picture(n, 32, 32) for n in range(3)]
    assert model.caption(images, batch_size=3) == model.caption(images, batch_size=1)


def test_a_generator_draws_noise_that_the_seed_does_not(model):
    drawn = [
        np.asarray(model.draw(["a dot"], generator=torch.Generator().manual_seed(seed))[0])
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_words_are_drawn_at_a_temperature_from_the_likeliest_only(model):
    image, one = [picture(1, 32, 32)], torch.Generator()
    greedy = model.caption(image)
    assert model.caption(image, temperature=1.0, top_p=1e-6, generator=one) == greedy
    many = {
        model.caption(image, temperature=9.0, generator=one.manual_seed(seed))[0]
        for seed in range(4)
    }
    assert len(many) > 1


def test_a_size_that_the_model_does_not_draw_is_refused(model):
    with pytest.raises(ValueError, match=r"draws \(32, 32\) only"):
        model.draw(["a dot"], size=(32, 64))


def test_a_drawing_that_cannot_be_guided_is_refused(model):
    for options, words in (
        ({"guidance": float("nan")}, "guidance is nan; give a finite number"),
        ({"guidance_interval": (0.9, 0.1)}, "is not an interval; give two flow times"),
    ):
        with pytest.raises(ValueError, match=words):
            model.draw(["a dot"], **options)


def test_bfloat16_runs_and_stays_near(exported, model):
    half = load(exported, dtype=torch.bfloat16)
    images = [picture(1, 32, 32)]
    one, other = (np.asarray(m.reconstruct(images)[0], float) for m in (model, half))
    assert np.abs(one - other).mean() < 8
    assert half.draw(["a dot"])[0].size == (32, 32) and len(half.caption(images)) == 1


def test_everything_is_computed_on_the_models_own_device(model):
    """No accelerator is needed: "meta" computes nothing, but refuses tensors of another device."""
    with torch.device("meta"):
        other = type(model)(model.config)
    other._processor, other.generation_config = model.processor, model.generation_config
    said = [theirs(model, Text("a red dot"))]
    noise = torch.zeros(1, 4, model.config.codec["latent_dim"], device="meta")
    latents = other.draw_latents([said], (2, 2), noise, steps=2, guidance=2.0)
    condition = other.decompress(latents, (2, 2))
    tokens = torch.zeros(1, 4, model.config.pixel_decoder["channels"], device="meta")
    time = torch.zeros(1, device="meta")
    assert other.pixel_decoder.velocity(tokens, time, condition, (2, 2)).device.type == "meta"
    context = other.read([model.processor.prefix(said)])
    token = torch.zeros(1, dtype=torch.long, device="meta")
    assert other._feed(context, token, 0).device.type == "meta"


def test_plain_text_needs_no_positions_and_no_mask(model):
    ids = torch.tensor([[1, 20, 30, 40]])
    whole, cut = model(ids).logits, model(ids[:, :3]).logits
    torch.testing.assert_close(whole[:, :3], cut, atol=1e-5, rtol=1e-5)
