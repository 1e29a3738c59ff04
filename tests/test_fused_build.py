"""Building kernels: compilers, caches, processes, forks and threads. None may crash, none may be silently wrong."""

import multiprocessing
import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from helpers import assert_trees_equal, like, wide_params

import optimfn as of
from optimfn.fused import _build, _cache

TX = of.chain(of.clip_by_global_norm(1.0), of.adam(0.1))


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """As if this process had loaded no kernel, with a cache of its own."""
    monkeypatch.setattr(_build, "_loaded", _build._Loaded())
    monkeypatch.setenv("OPTIMFN_CACHE", str(tmp_path / "cache"))
    _build._version.cache_clear()
    _cache._temporary_directory.cache_clear()
    return tmp_path / "cache"


def assert_works(backend="fused"):
    params = wide_params()
    state, grads = TX.init(params), like(params)
    want = of.make_step(TX, backend="eager")(params, state, grads)
    assert_trees_equal(of.make_step(TX, backend=backend)(params, state, grads), want, rtol=1e-5, atol=1e-6)


def in_a_new_process(code, **environment):
    """Run code in a fresh interpreter; returns what it prints."""
    names = "import warnings, torch, optimfn as of\nfrom test_fused_build import *\n"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    command = [sys.executable, "-c", names + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestCache:
    def test_it_is_private_and_holds_readable_source(self, unbuilt):
        unbuilt.mkdir(mode=0o755)
        assert_works()
        assert stat.S_IMODE(unbuilt.stat().st_mode) == 0o700
        endings = sorted(path.suffix for path in unbuilt.iterdir())
        assert endings == [".c", ".sha256", ".so"]

    def test_a_cached_kernel_is_not_compiled_again(self, unbuilt, monkeypatch):
        assert_works()
        monkeypatch.setattr(_build, "_loaded", _build._Loaded())
        monkeypatch.setattr(_build, "_compile", None)
        assert_works()

    @pytest.mark.parametrize("damage", ["empty", "cut", "other", "no digest"])
    def test_a_damaged_entry_is_made_again(self, unbuilt, monkeypatch, damage):
        assert_works()
        (library,) = unbuilt.glob("*.so")
        (check,) = unbuilt.glob("*.sha256")
        whole = library.read_bytes()
        library.unlink()  # the file that this process has mapped stays as it is
        if damage == "no digest":
            library.write_bytes(whole)
            check.unlink()
        else:
            library.write_bytes({"empty": b"", "cut": whole[:1000], "other": whole[:-1] + b"x"}[damage])
        monkeypatch.setattr(_build, "_loaded", _build._Loaded())
        assert_works()
        assert library.read_bytes() == whole
        assert check.read_text() == _cache.digest(library)

    def test_another_processor_has_entries_of_its_own(self, unbuilt, monkeypatch):
        assert_works()
        monkeypatch.setattr(_build, "_loaded", _build._Loaded())
        monkeypatch.setattr(_build, "_processor", lambda: "another one")
        assert_works()
        assert len(list(unbuilt.glob("*.so"))) == 2

    def test_a_directory_that_cannot_be_written_to_is_replaced_by_a_temporary_one(self, unbuilt, monkeypatch):
        unbuilt.write_text("a file stands where the directory should be")
        assert_works()
        assert unbuilt.read_text()

    @pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
    def test_a_home_that_is_read_only(self, unbuilt, monkeypatch, tmp_path):
        home = tmp_path / "home"
        home.mkdir(mode=0o500)
        monkeypatch.delenv("OPTIMFN_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(home))
        assert_works()
        assert list(home.iterdir()) == []

    def test_where_it_is(self, monkeypatch):
        monkeypatch.setenv("OPTIMFN_CACHE", "/chosen")
        assert _cache.cache_directory() == Path("/chosen")
        monkeypatch.delenv("OPTIMFN_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
        assert _cache.cache_directory() == Path("/xdg/optimfn")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/home/someone")
        assert _cache.cache_directory() == Path("/home/someone/.cache/optimfn")


class TestCompiler:
    @pytest.mark.parametrize(
        ("compiler", "words"),
        [
            ("no-such-compiler", "no C compiler was found: looked for no-such-compiler"),
            ("false", "failed on"),
        ],
    )
    def test_without_one_steps_are_eager_after_one_warning(self, unbuilt, monkeypatch, compiler, words):
        monkeypatch.setenv("CC", compiler)
        with pytest.warns(RuntimeWarning, match=words):
            assert_works("auto")
        with pytest.raises(RuntimeError, match=words):
            assert_works("fused")

    def test_cc_may_hold_arguments(self, unbuilt, monkeypatch):
        monkeypatch.setenv("CC", "cc -g0")
        assert_works()

    def test_a_compiler_that_changed_compiles_again(self, unbuilt, monkeypatch):
        assert_works()
        monkeypatch.setattr(_build, "_loaded", _build._Loaded())
        monkeypatch.setattr(_build, "_version", lambda path, changed: "version 99")
        assert_works()
        assert len(list(unbuilt.glob("*.so"))) == 2


class TestProcesses:
    def test_several_may_compile_the_same_source_at_once(self, tmp_path):
        environment = {**os.environ, "OPTIMFN_CACHE": str(tmp_path)}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
        command = [sys.executable, "-c", "from test_fused_build import *; torch.set_num_threads(1); assert_works()"]
        started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(4)]
        results = [(process.communicate()[1], process.returncode) for process in started]
        assert [code for _, code in results] == [0] * 4, results
        assert len(list(tmp_path.glob("*.so"))) == 1
        assert len(list(tmp_path.iterdir())) == 3

    def test_a_forked_child_steps_on_one_thread(self):
        told = in_a_new_process(
            """
            import os
            torch.set_num_threads(2)
            params = {"a": torch.randn(400_000)}
            state, grads = TX.init(params), like(params)
            step = of.make_step(TX, donate=True, backend="fused")
            step(params, state, grads)
            want = of.make_step(TX, backend="eager")(params, state, grads)
            child = os.fork()
            if child == 0:
                step(params, state, grads)
                # A thousand, since torch's own threads do not live on in a child either.
                torch.testing.assert_close(params["a"][-1000:], want[0]["a"][-1000:])
                os._exit(0)
            print(os.waitpid(child, 0)[1])
            """
        )
        assert told == "0\n"

    def test_workers_by_spawn_and_fork_agree(self):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            got = pool.apply(_clipped_in_a_worker)
        assert got == _clipped_in_a_worker()


def _clipped_in_a_worker():
    params = torch.linspace(-1, 1, 1000)
    step = of.make_step(of.chain(of.clip_by_global_norm(1.0), of.scale(-1.0)), backend="fused")
    return step(params, of.chain(of.clip_by_global_norm(1.0), of.scale(-1.0)).init(params), params)[0].tolist()


class TestThreads:
    def test_many_may_share_one_step(self):
        step = of.make_step(TX, backend="fused")
        eager = of.make_step(TX, backend="eager")
        work = []
        for size in (64, 64, 64, 128, 256, 40_000):
            params = {"a": torch.randn(size)}
            work.append((params, TX.init(params), like(params)))
        wanted = [eager(*one) for one in work]
        problems = []

        def run(one, want):
            try:
                for _ in range(20):
                    assert_trees_equal(step(*one), want, rtol=1e-5, atol=1e-6)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=run, args=pair) for pair in zip(work, wanted, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []

    def test_their_number_may_change_and_changes_no_result(self):
        params = {"a": torch.randn(300_000), "b": torch.randn(70_000)}
        state, grads = TX.init(params), like(params)
        step, results = of.make_step(TX, backend="fused"), []
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            results.append(step(params, state, grads))
        for result in results[1:]:
            assert_trees_equal(result, results[0])
