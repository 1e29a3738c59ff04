"""Import generated Triton modules, once per distinct source.

Triton compiles a function when it is first launched, and keeps the result in a cache of its own. It reads the source
of a function from the file it came from, so a module must be one.
"""

import functools
import hashlib
import importlib.util
import linecache
import os
import tempfile
from pathlib import Path
from typing import Any

from . import _cache
from ._cache import CannotBuild

_MOST = 512  # modules that are held besides those that programs hold


@functools.lru_cache(_MOST)
def load(source: str) -> dict[str, Any]:
    """The names that a module defines.

    Raises:
        CannotBuild: if Triton is missing, or there is no directory to write to.
    """
    if importlib.util.find_spec("triton") is None:
        raise CannotBuild("Triton was not found, which compiles kernels for CUDA devices")
    path = _kept(source)
    # Triton reads the lines of what runs, whatever becomes of the file.
    linecache.cache[str(path)] = (len(source), None, source.splitlines(keepends=True), str(path))
    names: dict[str, Any] = {"__name__": f"optimfn_{path.stem}", "__file__": str(path)}
    exec(compile(source, path, "exec"), names)
    return names


def _kept(source: str) -> Path:
    """The file in the cache that holds a source."""
    directory = _cache.writable_directory()
    stem = hashlib.sha256(source.encode()).hexdigest()[:32]
    path, check = directory / f"{stem}.py", directory / f"{stem}.sha256"
    opened = _cache.open_intact(path, check)
    if opened is None:
        try:
            with tempfile.TemporaryDirectory(dir=directory) as private:
                written = Path(private) / path.name
                written.write_text(source)
                opened = _cache.publish([(written, path)], check)
            _cache.prune_once(directory)
        except OSError as error:
            raise CannotBuild(f"kernels cannot be written to {directory}: {error}") from error
    os.close(opened)
    return path
