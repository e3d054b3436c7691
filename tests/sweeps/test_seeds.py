"""Seeds of a sweep are independent: no order of documents of one is an order of another."""

from __future__ import annotations

from data_pipelines.batches import document_stream
from tests.data.samples import tokenizer
from tests.tiny import tiny_config
from unicom_jax.runs.stages import STAGES, data_seed

ENTRIES = 32  # tasks and sources of a mixture; each has an order of its own


def test_no_order_of_a_seed_and_stage_is_that_of_another():
    """An entry's order follows from the stage's seed and its number in the mixture."""
    config, seen = tiny_config(), set()
    for seed in range(20):
        config.seed = seed
        for label in (*STAGES, "pretrain-2"):
            seen |= {data_seed(config, label) + entry for entry in range(ENTRIES)}
    assert len(seen) == 20 * (len(STAGES) + 1) * ENTRIES


def test_the_second_task_of_a_seed_reads_in_another_order_than_the_first_task_of_the_next_seed():
    words = tokenizer()

    def orders(seed: int) -> list[list[int]]:
        config = tiny_config(seed=seed, data__vocab_size=words.vocab_size)
        own = data_seed(config, "pretrain")
        found = document_stream(config, "pretrain", words, seed=own).mixture._orders
        return [[order[place] for place in range(20)] for order in found]

    first, second = orders(0), orders(1)
    assert not {tuple(order) for order in first} & {tuple(order) for order in second}
    assert len({tuple(order) for order in first}) == len(first)
