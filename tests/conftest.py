"""Settings every test runs under: one thread, float32 by default, a seed of its own, warnings as errors."""

import atexit
import contextlib
import gc
import os
import shutil
import sys
import tempfile
import zlib

import hypothesis
import pytest
import torch

if "OPTIMFN_CACHE" not in os.environ:  # one for the whole session: xdist's workers inherit it
    os.environ["OPTIMFN_CACHE"] = tempfile.mkdtemp(prefix="optimfn-tests-")
    atexit.register(shutil.rmtree, os.environ["OPTIMFN_CACHE"], ignore_errors=True)

if os.environ.get("TRITON_INTERPRET") == "1":  # every test of fused steps runs the kernels that CUDA devices get
    import triton_on_cpu

    triton_on_cpu.install()

if (
    os.environ.get("ROUGH_PROCESSOR") == "1"
):  # every test runs where roots and libm are off by a unit, see processors.py
    import processors

    _rough = processors.rough_processor()
    _rough.__enter__()
    atexit.register(_rough.__exit__, None, None, None)

os.environ.setdefault("MPLBACKEND", "Agg")  # pictures without a window

gc.disable()  # while tests are collected: a fourth of that time is spent in looking at what stays anyway

hypothesis.settings.register_profile("suite", deadline=None, max_examples=25, derandomize=True, print_blob=True)
# Other examples in every run, and more of them: what fails prints the line that draws it again.
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=100, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_addoption(parser):
    parser.addoption("--rule", help="run the tests of one rule alone, by its exact name or that of its case")


def pytest_collection_modifyitems(config, items):
    rule = config.getoption("--rule")
    if rule:
        kept = [item for item in items if rule in _names(item)]
        config.hook.pytest_deselected(items=[item for item in items if rule not in _names(item)])
        items[:] = kept


def _names(item):
    """The rule that a test is about, its case, and what that stands for."""
    case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
    make, covers = getattr(case, "make", None), getattr(case, "covers", ())
    return {getattr(case, "name", None), getattr(make, "__name__", None), *covers}


def pytest_configure(config):
    if config.getoption("maxfail") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Namer(config))


class _Namer:
    """With -x, names the test that has failed at once: workers that are busy take some seconds to end."""

    def __init__(self, config):
        self.plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.plugins.get_plugin("terminalreporter").write_line(f"\nFAILED {report.nodeid}")


def pytest_collection_finish():
    """Tests by the ten thousand, and torch, stay to the end: no garbage collection need look at them again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    """Also in the process that hands tests out, and collects none."""
    gc.enable()


def _guards_are_not_timed():
    """Whoever compiles a graph has dynamo time its guards, for a log, after 0.1 s of emptying the caches."""
    guards = sys.modules.get("torch._dynamo.guards")
    if hasattr(guards, "profile_guard_manager"):
        guards.profile_guard_manager = lambda *args: 0.0


# These files ask how steps are managed, of every rule: what they compile, half of their time, is not optimised. Kernels
# of every rule are compiled as for users in test_laws.py, test_processors.py and test_fused*.py, and all nightly.
UNOPTIMISED = {"absent_gradients", "checkpoints", "counts", "cuda", "dropin", "ownership"}
if os.environ.get("HYPOTHESIS_PROFILE") == "nightly":
    UNOPTIMISED = set()
_unoptimised = []  # what has been loaded there: names of functions do not tell flags apart


@contextlib.contextmanager
def _flags_of(file):
    build = sys.modules.get("optimfn.fused.run._build")
    if build is None or file.removeprefix("test_") not in UNOPTIMISED:
        yield
        return
    kept = build.FLAGS, build._loaded
    if not _unoptimised:
        _unoptimised.append(build._Loaded())
    build.FLAGS, build._loaded = ("-O0", *build.FLAGS[1:]), _unoptimised[0]
    try:
        yield
    finally:
        build.FLAGS, build._loaded = kept


@pytest.fixture(autouse=True)
def _settings(request):
    _guards_are_not_timed()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    seed = zlib.crc32(request.node.name.encode())
    # Without devices, `torch.manual_seed` notes for each kind of them who has called it, in 1 ms, for ever.
    torch.manual_seed(seed) if torch.cuda.is_available() else torch.default_generator.manual_seed(seed)
    with _flags_of(request.node.path.stem):
        yield
    torch.set_default_dtype(torch.float32)
