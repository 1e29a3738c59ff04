"""Where generated code is kept.

The cache is a directory of our own, mode 0700, inside the directory for caches, whose own mode is not ours to change.
An entry is made in a private directory inside it and moved into place, so that processes that make the same entry at
once do not meet. A digest of what was made, kept beside it, tells a damaged entry; its time is that of the last use,
and what was not used for long is removed.
"""

import atexit
import contextlib
import functools
import hashlib
import importlib
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

_DAY = 24 * 3600.0
_KEPT = 90 * _DAY  # entries that were not used for longer go, in seconds


class CannotBuild(Exception):
    """There is no way to compile here; the message says why."""


def cache_directory() -> Path:
    """The directory for caches: `OPTIMFN_CACHE`, else `optimfn` in the user's cache directory."""
    own = os.environ.get("OPTIMFN_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "optimfn"


@contextlib.contextmanager
def turn(entry: Path, seconds: float) -> Iterator[None]:
    """Let processes that make the same entry at once, as the ranks of one machine do, wait for the first of them.

    It is a courtesy: who has waited long enough, or cannot lock, makes the entry as well.
    """
    path, opened = entry.with_suffix(".lock"), None
    try:
        with contextlib.suppress(OSError, ImportError):
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            _wait_for(opened, seconds)
        yield
    finally:
        if opened is not None:
            path.unlink(missing_ok=True)
            os.close(opened)


def _wait_for(opened: int, seconds: float) -> None:
    locks = importlib.import_module("fcntl")  # not on every system
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            locks.flock(opened, locks.LOCK_EX | locks.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return


def publish(files: Sequence[tuple[Path, Path]], check: Path) -> int:
    """Move files from a private directory into place; the digest of the last one goes to `check`.

    Returns a descriptor of the last one, which is open before anybody else can find it.
    """
    made, _ = files[-1]
    opened = os.open(made, os.O_RDONLY)
    written = made.with_name(check.name)
    written.write_text(_digest(opened))
    # The digest comes last: whoever sees it sees what it belongs to.
    for old, new in (*files, (written, check)):
        os.replace(old, new)
    return opened


def open_intact(entry: Path, check: Path) -> int | None:
    """A descriptor of a cache entry that is there, is ours, and is what was made; else `None`.

    The path is looked at once: whoever puts another file there later changes nothing of what is open here.
    """
    try:
        digest = _open_ours(check)
        try:
            told = os.read(digest, 200).decode(errors="replace")
            if time.time() - os.fstat(digest).st_mtime > _DAY:
                os.utime(check)  # in use, so not to be pruned
        finally:
            os.close(digest)
        opened = _open_ours(entry)
    except OSError:
        return None
    if _digest(opened) != told:
        os.close(opened)
        return None
    return opened


def path_of(opened: int, path: Path) -> str:
    """A path that leads to the open file itself, where the system has such; it holds as long as the file is open."""
    own = f"/proc/self/fd/{opened}"
    return own if Path(own).exists() else str(path)


def writable_directory() -> Path:
    """Our directory in the cache; if it cannot be had, a temporary one, after one warning that says why.

    Raises:
        CannotBuild: if there is no directory to write to, or no way to tell whose files are.
    """
    owner = _owner()
    try:
        directory = cache_directory() / f"kernels-{owner}"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = _open_ours(directory)
        try:
            if stat.S_IMODE(os.fstat(opened).st_mode) & 0o022:
                raise PermissionError(f"others may write to {directory}")
        finally:
            os.close(opened)
        with tempfile.TemporaryDirectory(dir=directory):
            return directory
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        return _temporary_directory(str(error))


def prune(directory: Path) -> None:
    """Remove what was not used for long, and what a killed process has left."""
    newest: dict[str, float] = {}
    with os.scandir(directory) as found:
        entries = list(found)
    for entry in entries:
        stem = entry.name.partition(".")[0]
        try:
            newest[stem] = max(newest.get(stem, 0.0), entry.stat(follow_symlinks=False).st_mtime)
        except OSError:  # another process was faster
            newest[stem] = time.time()
    # The digests first: what has none is not loaded.
    for entry in sorted(entries, key=lambda entry: not entry.name.endswith(".sha256")):
        is_private = entry.is_dir(follow_symlinks=False)
        if time.time() - newest[entry.name.partition(".")[0]] <= (_DAY if is_private else _KEPT):
            continue
        if is_private:
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            Path(entry.path).unlink(missing_ok=True)


@functools.cache
def prune_once(directory: Path) -> None:
    """Prune a directory the first time that this process adds something to it."""
    prune(directory)


def _owner() -> int:
    """Who we are."""
    if not hasattr(os, "getuid"):
        raise CannotBuild("this system does not say whose files those in a cache are")
    return os.getuid()


def _open_ours(path: Path) -> int:
    """Open a file or directory that belongs to us, and is no link to another."""
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    if os.fstat(opened).st_uid != _owner():
        os.close(opened)
        raise PermissionError(f"{path} belongs to another user")
    return opened


def _digest(opened: int) -> str:
    """Tells the contents of files apart."""
    with open(os.dup(opened), "rb") as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()


_temporary: dict[str, Path] = {}


def _temporary_directory(why: str) -> Path:
    """A directory that goes when the process does; a forked child uses that of its parent as long as it is there."""
    made = _temporary.get("made")
    if made is not None and made.is_dir():
        return made
    try:
        made = _temporary["made"] = Path(tempfile.mkdtemp(prefix="optimfn-"))
    except OSError as error:
        raise CannotBuild(f"there is no directory to write kernels to: {why}; {error}") from error
    atexit.register(_remove, made, os.getpid())
    if "warned" not in _temporary:
        _temporary["warned"] = made
        warnings.warn(
            f"kernels are kept for this process only, since the cache cannot be used: {why}; "
            "the environment variable OPTIMFN_CACHE names another directory",
            RuntimeWarning,
            stacklevel=2,
        )
    return made


def _remove(directory: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(directory, ignore_errors=True)
