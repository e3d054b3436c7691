"""Compares an exported model with what its JAX original gave: run by `unicom export --verify`.

    python verify_unicom.py FOLDER REFERENCE.npz RESULT.json

It imports what a user of the export has: torch, transformers and numpy; finding JAX loaded at the
end is an error. REFERENCE holds the pictures, words and noise that went in and all that came out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping

import numpy as np
import torch
from transformers import AutoModel

Reference = Mapping[str, np.ndarray]


def main(folder: str, reference_file: str, result_file: str) -> None:
    """Writes {output: largest difference} to `result_file`."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    with np.load(reference_file) as stored:
        reference = dict(stored)
    result = differences(model, reference)
    if found := [name for name in ("jax", "unicom_jax") if name in sys.modules]:
        raise SystemExit(f"the exported model imported {', '.join(found)}")
    with open(result_file, "w", encoding="utf-8") as file:
        json.dump(result, file)


def differences(model: AutoModel, reference: Reference) -> dict[str, float]:
    """{output: largest difference} of all that the model's family has."""
    return {
        name: compare(model, reference)
        for name, compare in COMPARISONS.items()
        if OF_ENCODERS.get(name, "images.0") in reference
    }


def _relative(ours: torch.Tensor, reference: np.ndarray) -> float:
    """Largest difference, in units of the largest number."""
    theirs = torch.tensor(reference)
    return float((ours.detach().float() - theirs).abs().max() / theirs.abs().max())


def _pictures(ours: list, reference: Reference, name: str) -> float:
    """Largest difference in levels of 0..255."""
    return max(
        float(np.abs(np.asarray(one, np.int16) - reference[f"{name}.{i}"].astype(np.int16)).max())
        for i, one in enumerate(ours)
    )


def _listed(reference: Reference, name: str) -> list[np.ndarray]:
    return [reference[f"{name}.{i}"] for i in range(int(reference[f"{name}.count"]))]


def _texts(reference: Reference, name: str) -> list[str]:
    return [str(text) for text in reference[name]]


def _encoded(model: AutoModel, reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
    return model.encode([model.processor.image_processor.prepare(reference["images.0"])])


def features(model: AutoModel, reference: Reference) -> float:
    return _relative(_encoded(model, reference)[0][0], reference["features"])


def pooled(model: AutoModel, reference: Reference) -> float:
    with torch.no_grad():
        seen = model.vision_model.pool(_encoded(model, reference)[0])
    return _relative(seen[0], reference["pooled"])


def latents(model: AutoModel, reference: Reference) -> float:
    return _relative(_encoded(model, reference)[1][0], reference["latents"])


def _context(model: AutoModel, reference: Reference) -> object:
    segments = sys.modules[type(model.processor).__module__]
    prefix = model.processor.prefix(
        [segments.Words(_texts(reference, "prompts")[0])], segments.VISION_START
    )
    return model.read([prefix])


@torch.no_grad()
def logits(model: AutoModel, reference: Reference) -> float:
    scores = model.language_model.logits(_context(model, reference).hidden)
    return _relative(scores[0], reference["logits"])


@torch.no_grad()
def velocity(model: AutoModel, reference: Reference) -> float:
    noisy, grid = torch.from_numpy(reference["latent_noise.0"])[None], reference["token_grid"]
    field = model.begin_drawing(_context(model, reference), tuple(grid.tolist()))
    speed = field(noisy, torch.tensor([float(reference["time"])]))
    return _relative(speed[0], reference["velocity"])


@torch.no_grad()
def captions(model: AutoModel, reference: Reference) -> float:
    """Tokens that differ."""
    segments = sys.modules[type(model.processor).__module__]
    images, question = _listed(reference, "images"), str(reference["question"])
    prefixes = [
        model.processor.prefix([segments.Image(image), segments.Words(question)])
        for image in images
    ]
    limit = int(reference["max_tokens"])
    written = model.continue_tokens(model.read(prefixes), limit, lambda x: x.argmax(dim=-1))
    expected = [row.tolist() for row in _listed(reference, "captions")]
    differing = 0
    for ours, theirs in zip(written, expected, strict=True):
        differing += abs(len(ours) - len(theirs))
        differing += sum(a != b for a, b in zip(ours, theirs, strict=False))
    return float(differing)


def drawn(model: AutoModel, reference: Reference) -> float:
    noise = _listed(reference, "latent_noise"), _listed(reference, "pixel_noise")
    return _pictures(model.draw(_texts(reference, "prompts"), noise=noise), reference, "drawn")


def edited(model: AutoModel, reference: Reference) -> float:
    images, instructions = _listed(reference, "images"), _texts(reference, "instructions")
    return _pictures(model.edit(images, instructions, seed=0), reference, "edited")


def reconstructed(model: AutoModel, reference: Reference) -> float:
    images = _listed(reference, "images")
    return _pictures(model.reconstruct(images, seed=0), reference, "reconstructed")


COMPARISONS: dict[str, Callable[[AutoModel, Reference], float]] = {
    "features": features,
    "pooled features": pooled,
    "latents": latents,
    "logits": logits,
    "velocity": velocity,
    "captions": captions,
    "drawn pictures": drawn,
    "edited pictures": edited,
    "reconstructed pictures": reconstructed,
}

# Of families that look with a frozen encoder: what the reference calls them.
OF_ENCODERS = {"features": "features", "pooled features": "pooled"}

if __name__ == "__main__":
    main(*sys.argv[1:])
