"""Jobs of several processes on meshes of one process, and on those that are not the whole world; see `ranks`."""

import importlib
import io
from contextlib import redirect_stdout
from unittest import mock

import torch
import torch.distributed as dist
from shards import MESHES, Payload, R, S, drawn, problems
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import optimfn as of

MATRICES = {"a": (5, 3), "b": (3, 4), "c": (2, 6), "e": (1, 4)}
RULES = {
    "muon": lambda: of.torch_muon(0.1),
    "clip": lambda: of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1)),
    "adafactor": lambda: of.adafactor(0.1, min_dim_size_to_factor=2),
}


def alone():
    """What is sent where every axis of the mesh has one process, and what is wrong with the steps."""
    mesh = [DeviceMesh("cpu", [[rank]]) for rank in range(dist.get_world_size())][dist.get_rank()]
    values, grads = drawn(MATRICES, torch.float64, 1), drawn(MATRICES, torch.float64, 2)
    params, own = (
        {n: distribute_tensor(x, mesh, [S(0), S(1)], src_data_rank=None) for n, x in tree.items()}
        for tree in (values, grads)
    )
    found = {}
    for name, make in RULES.items():
        step, single = of.make_step(make()), of.make_step(make(), backend="eager")
        with CommDebugMode() as heard, Payload() as payload:
            got = make().update(own, make().init(params), params)
        want = make().update(grads, make().init(values), values)
        wrong = problems(got, want, 1e-12)
        with Payload() as by_kernels:
            made = step(params, make().init(params), own)
        wrong += problems(made, single(values, make().init(values), grads), 1e-12)
        if heard.get_total_counts() or payload.bytes or by_kernels.bytes:
            wrong.append(f"sends {dict(heard.get_comm_counts())}")
        if wrong:
            found[name] = wrong
    return found


def matrices_on_a_part_of_the_world():
    """What goes wrong with whole-matrix rules on two axes of a mesh that has no group of all its processes."""
    found = {}
    values, grads = drawn(MATRICES, torch.float32, 1), drawn(MATRICES, torch.float32, 2)
    tx = of.torch_muon(0.1)
    want = tx.update(grads, tx.init(values), values)[0]
    mesh = MESHES["square"]
    for placed, sends in {(R, S(0)): 2, (S(1), R): 2, (S(0), S(1)): None, (S(0), S(0)): None, (R, R): 0}.items():
        params, own = (
            {n: distribute_tensor(x, mesh, placed, src_data_rank=None) for n, x in tree.items()}
            for tree in (values, grads)
        )
        with mock.patch.object(dist, "get_world_size", world_of_more), CommDebugMode() as heard:
            got = tx.update(own, tx.init(params), params)[0]
        wrong = problems(got, want, 0.0)
        wrong += [] if all(x.placements == placed for x in got.values()) else ["it lies elsewhere"]
        if sends is not None and heard.get_total_counts() != sends:
            wrong.append(f"sends {dict(heard.get_comm_counts())}")
        if wrong:
            found[str(placed)] = wrong
    return found


def matrices_of_several_kinds():
    """What goes wrong where leaves have dimension numbers of several kinds: two collectives serve all of them."""
    values, grads = kinds()
    numbers = of.MuonDimensionNumbers
    dims = {"heads": "batch", "conv": "flatten", "qkv": numbers(1, 0, (8, 2, 2)), "w": numbers(1, 0)}
    rules = {
        "torch_muon": (of.torch_muon(0.1, weight_dimension_numbers=dims), 2, 0.0),
        "muon": (of.muon(0.1, muon_weight_dimension_numbers=dims), 2, 0.0),
        "dion2": (of.dion2(0.1, dtype=torch.float32, weight_dimension_numbers=dims), 4, 1e-6),
        "normuon": (of.normuon(0.1, dtype=torch.float32, weight_dimension_numbers=dims), 5, 1e-6),
    }
    found = {}
    for name, (tx, sends, tolerance) in rules.items():
        params, own = (
            {n: distribute_tensor(x, MESHES["four"], [S(0)], src_data_rank=None) for n, x in tree.items()}
            for tree in (values, grads)
        )
        want = tx.update(grads, tx.init(values), values)[0]
        state = tx.init(params)
        with CommDebugMode() as heard:
            got = tx.update(own, state, params)[0]
        wrong = problems(got, want, tolerance)
        if heard.get_total_counts() > sends:
            wrong.append(f"sends {dict(heard.get_comm_counts())}")
        if wrong:
            found[name] = wrong
    return found


def kinds():
    shapes = {"heads": (4, 3, 5), "conv": (6, 2, 2, 2), "qkv": (12, 5), "w": (7, 4)}
    return [drawn(shapes, torch.float32, seed) for seed in (1, 2)]


def world_of_more(group=None, real=dist.get_world_size):
    """As if there were processes beside those of the mesh."""
    return real(group) + (group is None)


def example(name, mesh, steps, folder=None, every=1):
    """The losses and the lines of an example on some of the processes."""
    main = importlib.import_module(name.removesuffix(".py")).main
    mesh = DeviceMesh("cpu", [0]) if mesh == "one" else MESHES[mesh]
    if dist.get_rank() not in mesh.mesh:
        return None
    with redirect_stdout(io.StringIO()) as printed:
        more = {} if folder is None else {"folder": folder, "every": every}
        return main(mesh, steps, **more), printed.getvalue()


def compiled():
    """What goes wrong where steps on shards are one graph, which knows the collectives."""
    if dist.get_rank() > 1:
        return {}
    shapes = {"a": (5, 3), "c": (3, 2)}
    rules = {"a": of.scale_by_muon(), "c": of.adafactor(0.1, min_dim_size_to_factor=2)}
    tx = of.chain(of.clip_by_global_norm(1.0), of.partition(rules, {"a": "a", "c": "c"}))
    values, grads = (drawn(shapes, torch.float64, seed) for seed in (1, 2))

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return of.apply_updates(params, updates), state

    def count(graph, inputs):
        sent.append(sum(str(node.target).startswith("_c10d_functional.all_") for node in graph.graph.nodes))
        return graph.forward

    sent = []
    params, own = (
        {n: distribute_tensor(x, MESHES["two"], [S(0)], src_data_rank=None) for n, x in t.items()}
        for t in (values, grads)
    )
    torch._dynamo.reset()
    got = torch.compile(step, fullgraph=True, backend=aot_autograd(fw_compiler=count))(params, tx.init(params), own)
    wrong = problems(got, step(values, tx.init(values), grads), 1e-12)
    # One each for the norm and the matrix, three for the factors.
    wrong += [] if sent == [5] else [f"sends {sent}"]
    return {"all": wrong} if wrong else {}
