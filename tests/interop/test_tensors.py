"""Folders of safetensors: what is written is read back; what is damaged is named."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from unicom_jax.interop import tensors
from unicom_jax.interop.tensors import WeightsError, open_tensors, weight_files, write_tensors

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2), "d": ()}


def values(name: str) -> np.ndarray:
    return np.asarray(np.arange(np.prod(SHAPES[name]), dtype=np.float32).reshape(SHAPES[name]) / 7)


def write(folder, dtype=np.float32, **options):
    write_tensors(folder, SHAPES, values, np.dtype(dtype), **options)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shard_bytes", [10**6, 60, 1])
def test_what_is_written_is_read_back(tmp_path, dtype, shard_bytes):
    write(tmp_path, dtype, shard_bytes=shard_bytes)
    folder = open_tensors(tmp_path)
    assert {name: fact.shape for name, fact in folder.facts.items()} == SHAPES
    for name in SHAPES:
        assert np.array_equal(folder.read(name), values(name).astype(dtype))
        assert folder.read(name).dtype == dtype


def test_shards_hold_at_most_their_size_and_stand_in_the_index(tmp_path):
    write(tmp_path, shard_bytes=70)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert index["weight_map"] == {"a": first, "b": first, "c": second, "d": second}
    assert index["metadata"]["total_size"] == 4 * (12 + 5 + 4 + 1)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_file_is_byte_for_byte_what_the_library_writes(tmp_path, dtype):
    write(tmp_path, dtype)
    held = {name: values(name).astype(dtype) for name in SHAPES}
    save_file(held, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("chunk_bytes", [1, 10**6])
@pytest.mark.parametrize(
    "window", [(), (slice(1, 3),), (slice(0, 2), slice(1, 3)), (slice(0, 3), slice(3, 4))], ids=str
)
def test_a_window_reads_as_a_slice_of_the_whole(tmp_path, window, chunk_bytes, monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK_BYTES", chunk_bytes)
    write(tmp_path)
    assert np.array_equal(open_tensors(tmp_path).read("a", window), values("a")[window])


def test_a_tensor_that_breaks_its_promise_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a was promised with shape \(2,\), not \(3,\)"):
        write_tensors(tmp_path, {"a": (2,)}, lambda _: np.zeros(3), np.dtype(np.float32))


def test_one_shard_has_no_index(tmp_path):
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_transformers_layouts_of_several_stems_live_side_by_side(tmp_path):
    write(tmp_path)
    write(tmp_path, stem="diffusion_pytorch_model")
    folder = open_tensors(tmp_path, "diffusion_pytorch_model")
    assert all(f.shard.name.startswith("diffusion") for f in folder.facts.values())


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing"):
        open_tensors(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, shard_bytes=1)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(WeightsError, match="model-00002-of-00004.safetensors is missing"):
        open_tensors(tmp_path)


@pytest.mark.parametrize("keep", [4, 40, -1])
def test_a_shard_cut_short_is_named(tmp_path, keep):
    write(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors is damaged"):
        open_tensors(tmp_path)


def both(folder, stem: str) -> None:
    """Shards with an index, and a single file with other values beside them."""
    write(folder, shard_bytes=1, stem=stem)
    write_tensors(folder, SHAPES, lambda name: values(name) + 1, np.dtype(np.float32), stem=stem)


def test_the_single_file_is_read_before_shards_as_transformers_does(tmp_path):
    both(tmp_path, "model")
    folder = open_tensors(tmp_path)
    assert np.array_equal(folder.read("a"), values("a") + 1)
    assert folder.unread == tmp_path / "model.safetensors.index.json"


def test_the_index_is_read_before_a_single_file_as_diffusers_does(tmp_path):
    both(tmp_path, "diffusion_pytorch_model")
    folder = open_tensors(tmp_path, "diffusion_pytorch_model")
    assert np.array_equal(folder.read("a"), values("a"))
    assert folder.unread == tmp_path / "diffusion_pytorch_model.safetensors"


def test_an_index_left_behind_without_its_shards_is_ignored(tmp_path):
    both(tmp_path, "model")
    for shard in tmp_path.glob("*-of-*"):
        shard.unlink()
    (tmp_path / "model.safetensors.index.json").write_text("not read at all")
    assert open_tensors(tmp_path).facts.keys() == SHAPES.keys()
    assert weight_files(tmp_path).names == ["model.safetensors"]


def test_an_index_of_diffusers_without_its_shards_names_the_file_that_is_there(tmp_path):
    both(tmp_path, "diffusion_pytorch_model")
    for shard in tmp_path.glob("*-of-*"):
        shard.unlink()
    with pytest.raises(WeightsError, match=r"is missing; .* or delete .*index.json to read"):
        open_tensors(tmp_path, "diffusion_pytorch_model")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_tensor(tmp_path, dtype, bad):
    def spoilt(name):
        array = values(name).copy()
        array[array > array.max() - 0.01] = bad if name == "b" else 1.0
        return array

    write_tensors(tmp_path, SHAPES, spoilt, np.dtype(dtype))
    folder = open_tensors(tmp_path)
    folder.read_finite("a")
    with pytest.raises(WeightsError, match=r"model\.safetensors: b holds NaN or infinite values"):
        folder.read_finite("b")


def test_an_index_that_promises_too_much_is_named(tmp_path):
    write(tmp_path, shard_bytes=1)
    index = tmp_path / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    listing["weight_map"]["e"] = "model-00001-of-00004.safetensors"
    index.write_text(json.dumps(listing))
    with pytest.raises(WeightsError, match="lists e in model-00001"):
        open_tensors(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../model.safetensors"}}'],
)
def test_an_index_that_is_none_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(WeightsError, match="not an index of shards"):
        open_tensors(tmp_path)
