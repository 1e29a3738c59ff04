"""Four processes that stay, for tests of what runs on several: gloo on the CPU, started once a session.

A job is a function of a module of the tests, found by its name. It runs on all four at once; on smaller worlds the
first ones work, and meshes of every kind are there from the start, since making one is a collective as well.
"""

import atexit
import importlib
import multiprocessing
import os
import socket
import tempfile
import traceback

SIZE = 4
START, SECONDS = 300.0, 900.0  # to start, and for a job; whoever takes longer hangs, and is killed

_pool = None


def on_ranks(job, *args):
    """What a job, given as `module.function`, returns on each rank.

    Raises:
        AssertionError: with the tracebacks, if it raises on one of them or takes too long.
    """
    global _pool
    if _pool is None:
        _pool = _Pool()
    try:
        return _pool.run(job, args)
    except BaseException:
        _pool.kill()  # ranks that did not fail may wait for the one that did
        _pool = None
        raise


class _Pool:
    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self._store = tempfile.TemporaryDirectory(prefix="ranks-")
        self._pipes, self._processes = [], []
        before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME")}
        os.environ.update(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME=_loopback())
        try:
            for rank in range(SIZE):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(rank, self._store.name, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        atexit.register(self.kill)
        self._collect(START)

    def run(self, job, args):
        for pipe in self._pipes:
            pipe.send((job, args))
        return self._collect(SECONDS)

    def _collect(self, seconds):
        results, errors = [None] * SIZE, []
        waiting = dict(zip(self._pipes, range(SIZE), strict=True))
        while waiting:
            # Where one has failed, others that failed as well say so soon; the rest waits for it in vain.
            ready = multiprocessing.connection.wait([*waiting], 2.0 if errors else seconds)
            if not ready and errors:
                break
            if not ready:
                errors.append(f"ranks {sorted(waiting.values())} have not answered in {seconds:g} seconds")
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    failed, results[rank] = pipe.recv()
                except EOFError:
                    failed, results[rank] = True, "it has died"
                if failed:
                    errors.append(f"rank {rank}: {results[rank]}")
        assert not errors, "\n".join(errors)
        return results

    def kill(self):
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._store.cleanup()
        atexit.unregister(self.kill)


def _loopback():
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def _work(rank, directory, pipe):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=SIZE)
        importlib.import_module("shards").make_meshes()
        pipe.send((False, None))
        while True:
            try:
                job, args = pipe.recv()
            except EOFError:
                return
            module, name = job.rsplit(".", 1)
            try:
                answer = False, getattr(importlib.import_module(module), name)(*args)
            except BaseException:
                answer = True, traceback.format_exc()
            pipe.send(answer)
    except BaseException:
        pipe.send((True, traceback.format_exc()))
