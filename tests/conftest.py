"""What every test process needs before JAX is imported."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from tests.compiling import CACHE, share_contexts, xla_flags

# Tests speak of one CPU device; compiled programs are kept between runs, because compiling is most
# of what the tests do. torch stays off the second core, which belongs to the other worker.
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "XLA_FLAGS": xla_flags(),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

import tests.shapes  # noqa: E402 - the hook finds the checker by its name
from tests.sharing import scheduler, turn_of  # noqa: E402

# The shapes in signatures are checked at every traced call of a test. A run does not check them:
# there our own one-line errors, or JAX's, meet a wrong shape.
# `training`, `parallel` and `interop` pass trees of weights on, which no shape describes, and the
# suites of `evaluation` ask for a Protocol, which no checker can look into.
SHAPED = (
    "unicom_jax.core",
    "unicom_jax.models",
    "unicom_jax.families",
    "unicom_jax.inference",
    "unicom_jax.evaluation.metrics",
)
jaxtyping.install_import_hook(SHAPED, "tests.shapes.checked")
jaxtyping.jaxtyped = tests.shapes.jaxtyped_if_shaped  # the hook decorates by this name

# Tests run a program a few times, and LLVM's optimisations would take longer than they save. These
# folders measure programs and get all of them; so does a test that is marked `optimized`, because
# it asks for the last bits.
OPTIMIZED = ("parallel", "planning")


share_contexts()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    optimized = folder in OPTIMIZED or item.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not optimized)
    return (yield)


# Nearly all that is alive was made by imports and stays. Looking through it for garbage again and
# again took a twelfth of the time of all tests.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: turn_of(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return scheduler(config, log)
