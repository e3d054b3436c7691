"""One contestant of `sampling`: loads a model once, then takes a turn for every line it reads.

    PYTHONPATH=CHECKOUT python sampling_worker.py jax RUN PICTURES TOKENS
    PYTHONPATH=CHECKOUT python sampling_worker.py torch EXPORT PICTURES TOKENS
    PYTHONPATH=CHECKOUT python sampling_worker.py generate RUN PICTURES TOKENS

A line "draw" or "write" gives one line of JSON: seconds, and how many tokens were written. It runs
in any checkout, so it uses only what `Generator` had from the start. `generate` is the Qwen of
transformers with the run's sizes and random weights: its prompt has as many tokens as a picture
with the question, and it draws nothing.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

QUESTION = "Describe in detail."


def pictures(count: int, size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (size, size, 3), np.uint8) for _ in range(count)]


def prompts(count: int) -> list[str]:
    return [f"a red circle and {number} blue squares" for number in range(count)]


def ours(run: str, count: int, tokens: int) -> tuple[dict[str, Callable], Callable[[str], int]]:
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
    return turns, lambda text: len(generator.tokenizer.encode(text))


def exported(
    folder: str, count: int, tokens: int
) -> tuple[dict[str, Callable], Callable[[str], int]]:
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
    return turns, lambda text: len(model.processor.tokenizer(text)["input_ids"])


def picture_slots(config: Mapping[str, Any]) -> int:
    """Slots of a picture that a model reads, which may join several patches in one."""
    from data_pipelines.build import sequence_config
    from data_pipelines.sequences.format import UNDERSTANDING

    sequence = sequence_config(config)
    side = config["data"]["image_size"] // config["data"]["patch"]
    roles = UNDERSTANDING[sequence.understanding]
    return sum(math.prod(sequence.token_grid(side, side, role)) for role in roles)


def generate(run: str, count: int, tokens: int) -> tuple[dict[str, Callable], Callable[[str], int]]:
    import tokenizers
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = json.loads(Path(run, "config.json").read_text(encoding="utf-8"))
    sizes = config["unified"]["transformer"]
    kinds = (Qwen3Config, Qwen3ForCausalLM) if sizes["qk_norm"] else (Qwen2Config, Qwen2ForCausalLM)
    make_config, make_model = kinds
    model = make_model(
        make_config(
            vocab_size=config["data"]["vocab_size"],
            hidden_size=sizes["width"],
            intermediate_size=sizes["mlp_dim"],
            num_hidden_layers=sizes["depth"],
            num_attention_heads=sizes["heads"],
            num_key_value_heads=sizes["kv_heads"],
            head_dim=sizes["head_dim"],
            tie_word_embeddings=sizes["tied_head"],
            pad_token_id=0,
            attn_implementation="sdpa",
        )
    ).eval()
    question = tokenizers.Tokenizer.from_file(str(Path(run, "tokenizer/tokenizer.json")))
    slots = picture_slots(config) + len(question.encode(QUESTION).ids)
    prompt = torch.randint(8, config["data"]["vocab_size"], (count, slots))

    def write() -> list[int]:
        written = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        return [written.shape[1] - slots] * count

    return {"write": write}, int


def main() -> None:
    kind, path, count, tokens = sys.argv[1:5]
    make = {"jax": ours, "torch": exported, "generate": generate}[kind]
    turns, length = make(path, int(count), int(tokens))
    for turn in turns.values():
        turn()  # compiles
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        result = turns[line.strip()]()
        seconds = time.perf_counter() - start
        written = sum(map(length, result)) if line.strip() == "write" else 0
        print(json.dumps({"seconds": seconds, "tokens": written}), flush=True)


if __name__ == "__main__":
    main()
