"""The examples in the docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import optimfn

MODULES = ["optimfn", *(module.name for module in pkgutil.walk_packages(optimfn.__path__, "optimfn."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
