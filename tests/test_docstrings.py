"""The examples in the docstrings."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import optimfn

MODULES = ["optimfn", *(module.name for module in pkgutil.walk_packages(optimfn.__path__, "optimfn."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0
    assert results.attempted == len(re.findall(r"^ +>>> ", inspect.getsource(module), re.MULTILINE))  # none is missed
