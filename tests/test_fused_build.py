"""Building kernels: compilers, caches, processes, forks and threads. None may crash, none may be silently wrong."""

import hashlib
import multiprocessing
import os
import stat
import subprocess
import sys
import textwrap
import threading
import time
import unittest
from pathlib import Path

import pytest
import torch
from helpers import assert_trees_equal, like, wide_params

import optimfn as of
from optimfn.fused.run import _build, _cache

TX = of.chain(of.clip_by_global_norm(1.0), of.adam(0.1))


@pytest.fixture
def unbuilt(monkeypatch, tmp_path):
    """As if this process had loaded no kernel, with a cache of its own."""
    monkeypatch.setattr(_build, "_loaded", _build._Loaded())
    monkeypatch.setenv("OPTIMFN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_cache, "_temporary", {})
    _build._version.cache_clear()
    _cache.prune_once.cache_clear()
    return tmp_path / "cache"


def again(monkeypatch):
    """As if this process had loaded no kernel yet."""
    monkeypatch.setattr(_build, "_loaded", _build._Loaded())


def pretend_owner(monkeypatch, *foreign):
    """As if these files and directories belonged to somebody else."""
    places = {(path.stat().st_dev, path.stat().st_ino) for path in foreign}
    real = os.fstat

    def fstat(opened):
        found = real(opened)
        if (found.st_dev, found.st_ino) not in places:
            return found
        return os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))

    monkeypatch.setattr(_cache.os, "fstat", fstat)


def assert_works(backend="fused"):
    params = wide_params()
    state, grads = TX.init(params), like(params)
    want = of.make_step(TX, backend="eager")(params, state, grads)
    assert_trees_equal(of.make_step(TX, backend=backend)(params, state, grads), want, rtol=1e-5, atol=1e-6)


NAMES = "import warnings, torch, optimfn as of\nfrom test_fused_build import *\n"


def in_a_new_process(code, names=NAMES, **environment):
    """Run code in a fresh interpreter; returns what it prints."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    command = [sys.executable, "-c", names + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestCache:
    def test_it_is_private_and_holds_readable_source(self, unbuilt):
        assert_works()
        (own,) = unbuilt.iterdir()
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        endings = sorted(path.suffix for path in own.iterdir())
        assert endings == [".c", ".sha256", ".so"]

    @pytest.mark.parametrize("mode", [0o755, 0o777, 0o1777, 0o700])
    def test_the_mode_of_a_directory_that_is_not_its_own_stays(self, unbuilt, mode):
        unbuilt.mkdir()
        unbuilt.chmod(mode)
        assert_works()
        assert stat.S_IMODE(unbuilt.stat().st_mode) == mode
        assert {stat.S_IMODE(path.stat().st_mode) for path in unbuilt.iterdir()} == {0o700}

    def test_a_cached_kernel_is_not_compiled_again(self, unbuilt, monkeypatch):
        assert_works()
        monkeypatch.setattr(_build, "_loaded", _build._Loaded())
        monkeypatch.setattr(_build, "_compile", None)
        assert_works()

    @pytest.mark.parametrize("damage", ["empty", "cut", "other", "no digest"])
    def test_a_damaged_entry_is_made_again(self, unbuilt, monkeypatch, damage):
        assert_works()
        (library,) = unbuilt.rglob("*.so")
        (check,) = unbuilt.rglob("*.sha256")
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
        assert check.read_text() == hashlib.sha256(whole).hexdigest()

    def test_another_processor_has_entries_of_its_own(self, unbuilt, monkeypatch):
        assert_works()
        monkeypatch.setattr(_build, "_loaded", _build._Loaded())
        monkeypatch.setattr(_build, "_processor", lambda: "another one")
        assert_works()
        assert len(list(unbuilt.rglob("*.so"))) == 2

    def test_a_directory_that_cannot_be_written_to_is_replaced_by_a_temporary_one(self, unbuilt, monkeypatch):
        unbuilt.write_text("a file stands where the directory should be")
        with pytest.warns(RuntimeWarning, match=r"kept for this process only.*Not a directory"):
            assert_works()
        again(monkeypatch)
        assert_works()  # a second warning would be an error
        assert unbuilt.read_text()

    def test_a_temporary_one_goes_with_the_process(self, tmp_path):
        (tmp_path / "file").write_text("no directory")
        (tmp_path / "temporary").mkdir()
        told = in_a_new_process(
            """
            warnings.simplefilter("ignore")
            assert_works()
            print(len(list(Path(os.environ["TMPDIR"]).rglob("*.so"))))
            """,
            OPTIMFN_CACHE=str(tmp_path / "file"),
            TMPDIR=str(tmp_path / "temporary"),
        )
        assert told == "1\n"
        assert list((tmp_path / "temporary").iterdir()) == []

    @pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
    def test_a_home_that_is_read_only(self, unbuilt, monkeypatch, tmp_path):
        home = tmp_path / "home"
        home.mkdir(mode=0o500)
        monkeypatch.delenv("OPTIMFN_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(home))
        with pytest.warns(RuntimeWarning, match="Permission denied"):
            assert_works()
        assert list(home.iterdir()) == []

    @pytest.mark.parametrize("how", ["of another user", "writable by others", "link"])
    def test_a_directory_that_others_may_fill_is_not_used(self, unbuilt, monkeypatch, tmp_path, how):
        own = unbuilt / f"kernels-{os.getuid()}"
        unbuilt.mkdir()
        if how == "link":
            (tmp_path / "elsewhere").mkdir(mode=0o700)
            own.symlink_to(tmp_path / "elsewhere")
        else:
            own.mkdir(mode=0o700)
        if how == "of another user":
            pretend_owner(monkeypatch, own)
        if how == "writable by others":
            own.chmod(0o777)
        words = {"of another user": "belongs to another user", "writable by others": "others may write"}
        with pytest.warns(RuntimeWarning, match=words.get(how, "symbolic links")):
            assert_works()
        assert list(own.iterdir()) == []

    @pytest.mark.parametrize("ending", ["so", "sha256"])
    def test_an_entry_of_another_user_is_made_again(self, unbuilt, monkeypatch, ending):
        assert_works()
        (entry,) = unbuilt.rglob(f"*.{ending}")
        pretend_owner(monkeypatch, entry)
        before = entry.stat().st_ino
        again(monkeypatch)
        assert_works()
        assert entry.stat().st_ino != before

    @pytest.mark.parametrize("ending", ["so", "sha256"])
    def test_an_entry_that_is_a_link_is_made_again(self, unbuilt, monkeypatch, tmp_path, ending):
        assert_works()
        (entry,) = unbuilt.rglob(f"*.{ending}")
        entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(tmp_path / "elsewhere")
        again(monkeypatch)
        assert_works()
        assert not entry.is_symlink()

    def test_what_was_checked_is_what_is_loaded(self, unbuilt, monkeypatch):
        assert_works()
        (library,) = unbuilt.rglob("*.so")
        real = _cache.open_intact

        def exchange_after_the_check(entry, check):
            opened = real(entry, check)
            entry.unlink()
            entry.write_bytes(b"something else")
            return opened

        monkeypatch.setattr(_cache, "open_intact", exchange_after_the_check)
        monkeypatch.setattr(_build, "_compile", None)
        again(monkeypatch)
        assert_works()
        assert library.read_bytes() == b"something else"

    def test_what_is_not_used_for_months_is_removed(self, unbuilt, monkeypatch):
        assert_works()
        own = unbuilt / f"kernels-{os.getuid()}"
        in_use = {path.name for path in own.iterdir()}
        months, hours = time.time() - 100 * 24 * 3600, time.time() - 10 * 3600
        for name, age in {"old.so": months, "old.c": months, "old.sha256": months, "used.so": months}.items():
            (own / name).write_text("")
            os.utime(own / name, (age, age))
        (own / "used.sha256").write_text("")  # its time is that of the last use
        for name, age in {"left": months, "busy": hours}.items():
            (own / name).mkdir()
            os.utime(own / name, (age, age))
        again(monkeypatch)
        _cache.prune_once.cache_clear()
        params = torch.ones(3)
        of.make_step(of.sgd(0.1, momentum=0.25), backend="fused")(
            params, of.sgd(0.1, momentum=0.25).init(params), params
        )
        names = {path.name for path in own.iterdir()}
        assert not any(name.startswith(("old", "left")) for name in names)
        assert in_use | {"used.so", "used.sha256", "busy"} < names

    def test_use_keeps_an_entry(self, unbuilt, monkeypatch):
        assert_works()
        (check,) = unbuilt.rglob("*.sha256")
        os.utime(check, (0, 0))
        again(monkeypatch)
        assert_works()
        assert time.time() - check.stat().st_mtime < 60

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

    def test_one_that_hangs_is_stopped_with_all_that_it_started(self, unbuilt, monkeypatch, tmp_path):
        hanging = tmp_path / "cc"
        hanging.write_text(
            f"#!/bin/sh\ncase $1 in --version) exit;; esac\nsleep 100 & echo $! > {tmp_path}/child\nwait\n"
        )
        hanging.chmod(0o700)
        monkeypatch.setenv("CC", str(hanging))
        monkeypatch.setattr(_build, "_LIMIT", 0.5)
        with pytest.raises(RuntimeError, match=r"cc took more than 0\.5 seconds"):
            assert_works()
        child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
        for _ in range(100):  # whoever inherits it may take a while to bury it
            if not child.exists() or child.read_text().split()[2] == "Z":
                break
            time.sleep(0.05)
        else:
            pytest.fail("it still runs")

    def test_a_compiler_that_changed_compiles_again(self, unbuilt, monkeypatch):
        assert_works()
        monkeypatch.setattr(_build, "_loaded", _build._Loaded())
        monkeypatch.setattr(_build, "_version", lambda path, changed: "version 99")
        assert_works()
        assert len(list(unbuilt.rglob("*.so"))) == 2


class TestProcesses:
    def test_several_that_need_the_same_source_at_once_compile_it_once(self, tmp_path):
        compiler, log, cache = (tmp_path / name for name in ("cc", "log", "cache"))
        compiler.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec cc "$@"\n')
        compiler.chmod(0o700)
        environment = {**os.environ, "OPTIMFN_CACHE": str(cache), "CC": str(compiler)}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
        command = [sys.executable, "-c", "from test_fused_build import *; torch.set_num_threads(1); assert_works()"]
        started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(4)]
        results = [(process.communicate()[1], process.returncode) for process in started]
        assert [code for _, code in results] == [0] * 4, results
        (own,) = cache.iterdir()
        assert sorted(path.suffix for path in own.iterdir()) == [".c", ".sha256", ".so"]
        compiled = [line for line in log.read_text().splitlines() if line != "--version"]
        assert len(compiled) == 1

    def test_who_waits_too_long_compiles_as_well(self, tmp_path):
        (tmp_path / "kernels").mkdir()
        start = time.monotonic()
        with _cache.turn(tmp_path / "kernels" / "entry.so", 100.0), _cache.turn(tmp_path / "kernels" / "entry.so", 0.2):
            assert 0.2 <= time.monotonic() - start < 50.0
        assert not list((tmp_path / "kernels").iterdir())

    @pytest.mark.parametrize("missing", ["register_at_fork", "getuid", "register_at_fork getuid O_NOFOLLOW"])
    def test_systems_without_forks_and_users(self, missing):
        told = in_a_new_process(
            f"""
            import os, warnings, torch
            for name in "{missing}".split(): delattr(os, name)
            import optimfn as of
            warnings.simplefilter("ignore")
            weight, step = torch.nn.Parameter(torch.ones(2)), of.make_step(of.sgd(0.25), donate=True)
            weight.grad = torch.ones(2)
            step(weight, of.sgd(0.25).init(weight), weight.grad)
            of.optim.SGD([weight], lr=0.25).step()
            of.Optimizer([weight], of.sgd, learning_rate=0.25).step()
            print(weight.tolist(), step.explain().partition(":")[0])
            """,
            names="",
            USERNAME="someone",  # which torch asks for
        )
        assert told == f"[0.25, 0.25] {'eager' if 'getuid' in missing else 'fused'}\n"

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


def test_a_logger_says_when_kernels_are_compiled(unbuilt):
    params = wide_params()
    with unittest.TestCase().assertLogs("optimfn", "INFO") as told:
        of.make_step(TX)(params, TX.init(params), like(params))
    assert [one.name for one in told.records] == ["optimfn", "optimfn"]
    assert "compiling kernels" in told.output[0]
    assert str(unbuilt) in told.output[0]
