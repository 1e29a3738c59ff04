"""Where generated code is kept.

The cache is a directory of the user, mode 0700. An entry is made in a private directory inside it and moved into
place, so that processes that make the same entry at once do not meet. A digest of what was made, kept beside it,
tells a damaged entry.
"""

import functools
import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path


class CannotBuild(Exception):
    """There is no way to compile here; the message says why."""


def cache_directory() -> Path:
    """The directory of compiled kernels: `OPTIMFN_CACHE`, else `optimfn` in the user's cache directory."""
    own = os.environ.get("OPTIMFN_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "optimfn"


def publish(files: Sequence[tuple[Path, Path]], check: Path) -> None:
    """Move files from a private directory into place; the digest of the last one goes to `check`."""
    made, _ = files[-1]
    written = made.with_name(check.name)
    written.write_text(digest(made))
    # The digest comes last: whoever sees it sees what it belongs to.
    for old, new in (*files, (written, check)):
        os.replace(old, new)


def is_intact(entry: Path, check: Path) -> bool:
    """Whether a cache entry is there, is ours, and is what was made."""
    try:
        ours = entry.stat().st_uid == os.getuid() and not entry.is_symlink()
        return ours and check.read_text() == digest(entry)
    except OSError:
        return False


def digest(path: Path) -> str:
    """Tells the contents of files apart."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def writable_directory() -> Path:
    """The cache directory, private to the user; a fresh temporary one if it cannot be had."""
    try:
        directory = cache_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid == os.getuid():
            if stat.S_IMODE(found.st_mode) != 0o700:
                directory.chmod(0o700)
            with tempfile.TemporaryDirectory(dir=directory):
                return directory
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        pass
    return _temporary_directory(os.getpid())


@functools.cache
def _temporary_directory(pid: int) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="optimfn-"))
    except OSError as error:
        raise CannotBuild(f"there is no directory to write kernels to: {error}") from error
