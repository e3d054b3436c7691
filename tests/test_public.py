"""`from unicom_jax import ...`: the public names, each imported when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import unicom_jax


@pytest.mark.parametrize("name", unicom_jax.__all__)
def test_a_public_name_is_documented(name):
    assert getattr(unicom_jax, name).__doc__
    assert name in dir(unicom_jax)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, unicom_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'unicom_jax' has no attribute 'Generater'"):
        unicom_jax.Generater  # noqa: B018
