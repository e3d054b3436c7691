"""What a generator does on eight devices, beside one: a line of JSON.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.inference.eight WORKDIR MESH

In a process of its own, as the number of devices is fixed when JAX starts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.segments import UNDERSTOOD, Image, Text
from tests.data.samples import picture
from unicom_jax.inference.generator import Generator

PICTURES = [picture(seed, 32, 32) for seed in range(2)]


def results(generator: Generator) -> dict[str, Any]:
    """One of everything that runs a program, in batches that do not fill the devices' rows."""
    generator.batch_size = 4
    drawing = {"steps": 2, "guidance": 3.0, "guidance_interval": (0.0, 0.4), "seed": 3}
    drawn = generator.draw(["a red dot", "a blue square", "a dot"], **drawing)
    edited = generator.edit(PICTURES, "paint it green", edit_start=0.3, **drawing)
    said = [Image(PICTURES[0], UNDERSTOOD), Text("how many?")]
    answers = generator.answer(PICTURES, "how many?", temperature=1.0, top_p=0.9, seed=2)
    talk = generator.respond(said, max_images=1, max_tokens=4)
    return {
        "pictures": np.stack([*(one.image for one in drawn), *edited]).astype(int).tolist(),
        "reconstructed": np.stack(generator.reconstruct(PICTURES)).astype(int).tolist(),
        "features": generator.features(PICTURES).tolist(),
        "words": [*answers, *(one.text for one in talk if isinstance(one, Text))],
    }


def largest_share(params: Any) -> float:
    """Of the bytes of all weights, what the fullest device holds."""
    held: dict[int, int] = {}
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return max(held.values()) / sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def main() -> None:
    workdir, mesh = Path(sys.argv[1]), sys.argv[2]
    generator = Generator.load(workdir, mesh=mesh)
    cache = generator.models.new_cache(8, 64).k
    facts = {
        "devices": jax.device_count(),
        "largest_share": largest_share(generator.params),
        "largest_share_of_cache": largest_share(cache),
        "results": results(generator),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
