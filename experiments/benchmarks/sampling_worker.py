"""One contestant of `sampling`: loads a model once, then takes a turn for every line it reads.

    PYTHONPATH=CHECKOUT python sampling_worker.py jax RUN PICTURES TOKENS
    PYTHONPATH=CHECKOUT python sampling_worker.py torch EXPORT PICTURES TOKENS

A line "draw" or "write" gives one line of JSON: seconds, and how many tokens were written. It runs
in any checkout, so it uses only what `Generator` had from the start.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

QUESTION = "Describe in detail."


def pictures(count: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(count)]


def prompts(count: int) -> list[str]:
    return [f"a red circle and {number} blue squares" for number in range(count)]


def ours(run: str, count: int, tokens: int) -> tuple[dict[str, Callable], Callable]:
    from unicom_jax.core.memory import keep_freed_memory
    from unicom_jax.inference.generator import Generator

    keep_freed_memory()  # as the `unicom` command does
    generator = Generator.load(run)
    generator.batch_size = count
    seen = pictures(count, generator.config["data"]["image_size"])
    turns = {
        "draw": lambda: generator.draw(prompts(count)),
        "write": lambda: generator.answer(seen, [QUESTION] * count, max_tokens=tokens),
    }
    return turns, generator.tokenizer.encode


def exported(folder: str, count: int, tokens: int) -> tuple[dict[str, Callable], Callable]:
    import os

    import torch
    from transformers import AutoModel

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    seen = pictures(count, model.defaults.image_size)
    turns = {
        "draw": lambda: model.draw(prompts(count), batch_size=count),
        "write": lambda: model.answer(
            seen, [QUESTION] * count, max_tokens=tokens, batch_size=count
        ),
    }
    return turns, lambda text: model.processor.tokenizer(text)["input_ids"]


def main() -> None:
    kind, path, count, tokens = sys.argv[1:5]
    turns, encode = {"jax": ours, "torch": exported}[kind](path, int(count), int(tokens))
    for turn in turns.values():
        turn()  # compiles
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        result = turns[line.strip()]()
        seconds = time.perf_counter() - start
        texts = [text for text in result if isinstance(text, str)]
        written = sum(len(encode(text)) for text in texts)
        print(json.dumps({"seconds": seconds, "tokens": written}), flush=True)


if __name__ == "__main__":
    main()
