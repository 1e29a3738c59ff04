"""Compile C once per distinct source, and load it.

The name of an entry in the cache is a digest of the source, the compiler and its version, the flags and the
processor.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from ..emit._c import print_unit
from ..emit._function import Function, without_comments
from . import _cache
from ._cache import CannotBuild
from ._process import Process

_LOG = logging.getLogger("optimfn")

FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fwrapv",  # whole numbers are hashed: a compiler that knows better ends loops where the first product overflows
    "-ffp-contract=off",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-w",
)
_LIMIT = 120.0  # seconds that a compiler may take; it needs a hundredth of them


class _Loaded:
    """The functions that this process has loaded, by name."""

    lock: threading.Lock

    def __init__(self) -> None:
        Process.give_lock(self)
        self.addresses: dict[str, int] = {}
        self.source: dict[str, Path] = {}
        self.libraries: list[ctypes.CDLL] = []


_loaded = _Loaded()


def load(functions: Sequence[Function]) -> dict[str, int]:
    """The address of each function, and of `run` and `clash`, the driver.

    If this process has not loaded all of them, they are looked for in the cache, all as one source, which does not
    depend on what has been loaded before. If they are not there, those that are missing are compiled.

    Raises:
        CannotBuild: if there is no compiler, no directory to write to, or the compiler fails.
    """
    with _loaded.lock:
        every = {function.name: function for function in functions}
        missing = {name: function for name, function in every.items() if name not in _loaded.addresses}
        if missing or not _loaded.libraries:
            # The driver is half of the compiler's work on a rule, and that of the first serves all.
            driver = () if _loaded.libraries else ("run", "clash")
            library, source = _library(
                [print_unit(every.values(), driver=True), print_unit(missing.values(), driver=bool(driver))]
            )
            _loaded.libraries.append(library)
            for name in (*missing, *driver):
                _loaded.addresses[name] = _address(library, name)
                _loaded.source[name] = source
        return {name: _loaded.addresses[name] for name in (*(f.name for f in functions), "run", "clash")}


def forget() -> None:
    """Load anew whatever is loaded next; for who fills the cache for processes that begin with nothing."""
    globals()["_loaded"] = _Loaded()


def loaded() -> object:
    """What stands for all that this process has loaded: addresses hold as long as it is the same."""
    return _loaded


def sources(names: Sequence[str]) -> list[Path]:
    """The files in which loaded functions can be read."""
    return sorted({_loaded.source[name] for name in names})


def _library(sources: Sequence[str]) -> tuple[ctypes.CDLL, Path]:
    """The library of the first source that is in the cache; if none is, the last is compiled."""
    compiler, directory = _compiler(), _cache.writable_directory()
    place = directory, directory, directory
    for source in dict.fromkeys(sources):
        place = _places(source, compiler, directory)
        opened = _cache.open_intact(place[0], place[2])
        if opened is not None:
            return _opened(opened, place)
    with _cache.turn(place[0], _LIMIT):
        opened = _cache.open_intact(place[0], place[2])
        if opened is None:
            opened = _compile(sources[-1], compiler[0], directory, place)
    return _opened(opened, place)


Places = tuple[Path, Path, Path]  # the library, its source, and its digest


def _places(source: str, compiler: tuple[list[str], str], directory: Path) -> Places:
    key = "\0".join([without_comments(source), *compiler[0], compiler[1], *FLAGS, _processor()])
    stem = hashlib.sha256(key.encode()).hexdigest()[:32]
    return directory / f"{stem}.so", directory / f"{stem}.c", directory / f"{stem}.sha256"


def _opened(opened: int, place: Places) -> tuple[ctypes.CDLL, Path]:
    library, text, _ = place
    try:
        # The file stays open: the loader takes the same path for the same library.
        return ctypes.CDLL(_cache.path_of(opened, library)), text
    except OSError as error:
        os.close(opened)
        raise CannotBuild(f"the compiled kernel {library} does not load: {error}") from error


def _compile(source: str, compiler: list[str], directory: Path, targets: Places) -> int:
    """Make an entry of the cache; returns a descriptor of the library."""
    library, text, check = targets
    try:
        with tempfile.TemporaryDirectory(dir=directory) as private:
            made, written = (Path(private) / path.name for path in (library, text))
            written.write_text(source)
            command = [*compiler, *FLAGS, "-o", str(made), str(written), "-lm"]
            _LOG.info("compiling kernels, %d lines of C, into %s", source.count("\n"), library)
            status, _, errors = _run(command)
            _LOG.info("compiled")
            if status:
                kept = shutil.copy(written, directory / f"failed-{written.name}")
                raise CannotBuild(f"{' '.join(command[:-4])} failed on {kept}:\n{errors[-2000:]}")
            opened = _cache.publish([(written, text), (made, library)], check)
        _cache.prune_once(directory)
    except OSError as error:
        raise CannotBuild(f"kernels cannot be written to {directory}: {error}") from error
    return opened


def _run(command: Sequence[str]) -> tuple[int, str, str]:
    """The status, output and errors of a compiler, which is stopped with all that it started if it takes too long."""
    try:
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise CannotBuild(f"the C compiler {command[0]} does not run: {error}") from error
    with started:
        try:
            output, errors = started.communicate(timeout=_LIMIT)
        except BaseException as problem:
            os.killpg(started.pid, signal.SIGKILL)
            if isinstance(problem, subprocess.TimeoutExpired):
                raise CannotBuild(f"{command[0]} took more than {_LIMIT:g} seconds") from problem
            raise
    return started.returncode, output, errors


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def _compiler() -> tuple[list[str], str]:
    """The command of the C compiler, and what it says of its version."""
    wanted = shlex.split(os.environ.get("CC", ""))
    for name, *arguments in [wanted] if wanted else [["cc"], ["gcc"], ["clang"]]:
        path = shutil.which(name)
        if path:
            return [path, *arguments], _version(path, Path(path).stat().st_mtime_ns)
    raise CannotBuild(f"no C compiler was found: looked for {wanted[0] if wanted else 'cc, gcc and clang'}")


@functools.cache
def _version(path: str, changed: int) -> str:
    return _run([path, "--version"])[1]


@functools.cache
def _processor() -> str:
    """The model and the features of the processor, since `-march=native` compiles for them alone."""
    try:
        text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        told = [line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))]
    except OSError:
        told = []
    return "\n".join([platform.machine(), platform.processor(), *told])
