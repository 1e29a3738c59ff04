"""Sharded trees for the tests, and the jobs that ranks do with them; see `ranks`."""

import functools
import itertools
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from cases import CASES
from cases.common import has_two_axes
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils.flop_counter import FlopCounterMode

import optimfn as of
from optimfn.fused.run import _known
from optimfn.fused.run._shared import shared

MESHES = {}
R, S = Replicate(), Shard

# For each layout: the mesh, and where `a`, `b`, `c` and `d` lie; `None` is a plain tensor on every rank. Five rows on
# four ranks leave one of them with none.
LAYOUTS = {
    "fsdp on 2": ("two", [S(0)], [S(0)], [S(0)], [S(0)]),
    "fsdp on 4": ("four", [S(0)], [S(0)], [S(0)], [S(0)]),
    "hsdp 2 x 2": ("square", [R, S(0)], [R, S(0)], [R, S(0)], [R, S(0)]),
    "tensor parallel": ("two", [S(1)], [R], [S(1)], [S(1)]),
    "fsdp and tensor parallel": ("square", [S(0), S(1)], [S(0), R], [S(0), S(2)], [S(1), S(0)]),
    "mixed with plain": ("four", [S(0)], None, [S(1)], None),
}
# Others, as nobody lays parameters out on purpose, but some wrappers do: leaves on several meshes (with their own
# placements), more ranks than columns, whole leaves beside shards, and an axis cut twice.
ODD_LAYOUTS = {
    "uneven columns": ("four", [S(1)], [S(0)], [S(2)], [S(1)]),
    "two meshes": ("four", [S(0)], ("square", [R, S(0)]), ("square", [S(2), S(0)]), None),
    "whole beside shards": ("four", [R], [S(0)], [R], [S(1)]),
    "replicas of columns": ("square", [R, S(1)], [R, R], [S(1), R], [R, S(1)]),
    "cut twice": ("square", [S(0), S(0)], [S(0), S(0)], [S(1), S(1)], [S(1), S(1)]),
}
LAYOUTS_OF_ALL = {**LAYOUTS, **ODD_LAYOUTS}
SHAPES = {"a": (5, 3), "b": (6,), "c": (4, 3, 2), "d": (1, 4)}


def make_meshes():
    """All that tests use; a collective."""
    MESHES["two"] = DeviceMesh("cpu", [0, 1], mesh_dim_names=("dp",))
    MESHES["four"] = DeviceMesh("cpu", [0, 1, 2, 3], mesh_dim_names=("dp",))
    MESHES["square"] = DeviceMesh("cpu", [[0, 1], [2, 3]], mesh_dim_names=("rep", "shard"))


def works_on(layout):
    """Whether this rank belongs to the mesh of a layout."""
    return dist.get_rank() in MESHES[LAYOUTS_OF_ALL[layout][0]].mesh


def sharded(layout, values):
    """Leaves, which all ranks have, in the shards of a layout."""
    mesh, *placed = LAYOUTS_OF_ALL[layout]
    where = {name: x if type(x) is tuple else (mesh, x) for name, x in zip(SHAPES, placed, strict=True)}
    return {
        name: x if own is None else distribute_tensor(x, MESHES[on], own, src_data_rank=None)
        for name, x, (on, own) in ((name, x, where[name]) for name, x in values.items())
    }


def whole(tree):
    """The leaves as ordinary tensors, and what is wrong with the layout of those that are none."""
    return of.tree.map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, tree)


def drawn(shapes, dtype, seed):
    """Random leaves, the same everywhere; the order of the names is not the alphabet's."""
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for n, shape in reversed(shapes.items())
    }


def gradients(shapes, dtype, steps):
    """Gradients that explode once and are zero in the first rows once, as those of embeddings are."""
    sequence = [drawn(shapes, dtype, 10 + step) for step in range(steps)]
    if steps > 2:
        sequence[1] = of.tree.scale(30.0, sequence[1])
        for g in sequence[2].values():
            g[:3] = 0
    return sequence


def problems(got, want, rtol):
    """What tells a tree of DTensors from the one that a single process has computed."""
    found = []
    for (path, x), y in zip(of.tree.leaves_with_path(got), of.tree.leaves(want), strict=True):
        place = of.tree.join_path(path)
        if isinstance(x, DTensor) and any(p.is_partial() for p in x.placements):
            found.append(f"{place} rests in parts: {x.placements}")
            x = x.full_tensor()
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            found.append(f"{place} is {x.dtype} {tuple(x.shape)}, not {y.dtype} {tuple(y.shape)}")
            continue
        if not y.numel():
            continue
        is_exact = not (y.is_floating_point() or y.is_complex())
        finite = y.new_empty(0) if is_exact else y[y.isfinite()]
        scale = max(1.0, finite.abs().max().item() if finite.numel() else 1.0)
        if isinstance(x, DTensor):  # every process looks at what it has
            y = distribute_tensor(y, x.device_mesh, x.placements, src_data_rank=None).to_local()
            x = x.to_local()
        if x.shape != y.shape or not y.numel():
            found += [f"{place} has {tuple(x.shape)} here, not {tuple(y.shape)}"] if x.shape != y.shape else []
            continue
        if is_exact:
            if not torch.equal(x, y):
                found.append(f"{place} decides otherwise")
            continue
        error = torch.where(y == x, 0, (x - y).abs()).nan_to_num(torch.inf).max().item()
        if not error <= rtol * scale and not (torch.isnan(x) & torch.isnan(y)).all():
            found.append(f"{place} is off by {error:.1e}")
    return found


def placements(tree):
    """Where each leaf lies."""
    return [x.placements if isinstance(x, DTensor) else None for x in of.tree.leaves(tree)]


CASE = {case.name: case for case in CASES}
SMALL = {name: shape for name, shape in SHAPES.items() if name != "d"}
STEPS = 4


@functools.cache
def whole_run(name, dtype):
    """The parameters and the state of a case, as one process has them at the end; the same for all layouts."""
    case, params = CASE[name], drawn(SMALL, dtype, 1)
    tx = case.plain()
    state = tx.init(params)
    for grads in gradients(SMALL, dtype, STEPS):
        updates, state = tx.update(grads, state, params, **case.extra)
        params = of.apply_updates(params, updates)
    return params, state


def compare(case, dtype, layout, rtol):
    """What goes wrong when a transformation steps shards of parameters rather than the parameters."""
    tx = case.plain()
    with CommDebugMode() as heard:
        own = sharded(layout, drawn(SMALL, dtype, 1))
        state = tx.init(own)
    found = [f"init communicates: {dict(heard.get_comm_counts())}"] if heard.get_total_counts() else []
    was, where = placements(state), placements(own)
    for grads in gradients(SMALL, dtype, STEPS):
        updates, state = tx.update(sharded(layout, grads), state, own, **case.extra)
        own = of.apply_updates(own, updates)
    params, whole_state = whole_run(case.name, dtype)
    found += problems(own, params, rtol) + [f"state: {x}" for x in problems(state, whole_state, rtol)]
    if placements(own) != where:
        found.append(f"parameters lie at {placements(own)}")
    if placements(state) != was:
        found.append(f"the state lay at {was}, and lies at {placements(state)}")
    return found


def compare_steps(case, dtype, layout, rtol):
    """What goes wrong when a donating step writes into shards, and whether kernels do it."""
    own, tx = sharded(layout, drawn(SMALL, dtype, 1)), case.plain()
    where = placements(own)
    state, step = tx.init(own), of.make_step(case.plain(), donate=True)
    with torch.no_grad():
        for grads in gradients(SMALL, dtype, STEPS):
            step(own, state, sharded(layout, grads), **case.extra)
    whole_params, whole_state = whole_run(case.name, dtype)
    found = problems(own, whole_params, rtol) + [f"state: {x}" for x in problems(state, whole_state, rtol)]
    return found if placements(own) == where else [*found, f"parameters lie at {placements(own)}"]


def law_of_steps(layout, dtype, rtol, skips, names=None):
    """The same of donating steps, by kernels where these can be."""
    return law_of_the_pure_api(layout, dtype, rtol, skips, names, compare_steps)


def steps_of_an_optimizer(make, params, sequence, extra, fused=None):
    """The parameters after steps of `Optimizer`, and the optimizer."""
    own = {name: torch.nn.Parameter(p) for name, p in params.items()}
    optimizer = of.Optimizer([*own.items()], make(), fused=fused)
    for grads in sequence:
        for name, p in own.items():
            p.grad = grads[name]
        optimizer.step(**extra)
    return of.tree.map(torch.detach, own), optimizer


def compare_optimizers(case, dtype, layout, rtol):
    """What goes wrong behind `Optimizer`."""
    make, extra = case.plain, case.extra
    params, sequence = drawn(SMALL, dtype, 1), gradients(SMALL, dtype, STEPS)
    cut = [sharded(layout, grads) for grads in sequence]
    got, optimizer = steps_of_an_optimizer(make, sharded(layout, of.tree.map(torch.clone, params)), cut, extra)
    want, single = steps_of_an_optimizer(make, of.tree.map(torch.clone, params), sequence, extra, fused=False)
    states = [
        [{key: x for key, x in own.items() if isinstance(x, torch.Tensor)} for own in one.state.values()]
        for one in (optimizer, single)
    ]
    found = problems(got, want, rtol) + [f"state: {x}" for x in problems(*states, rtol)]
    where = placements(sharded(layout, params))
    return found if placements(got) == where else [*found, f"parameters lie at {placements(got)}"]


def law_of_optimizers(layout, dtype, rtol, skips, names=None):
    """The same behind `Optimizer`."""
    return law_of_the_pure_api(layout, dtype, rtol, skips, names, compare_optimizers)


def dropins_on_fsdp():
    """The drop-in classes on a model under `fully_shard` against those of torch on the same model without."""
    classes = {
        "AdamW": {"lr": 1e-2},
        "SGD": {"lr": 1e-1, "momentum": 0.9},
        "Adafactor": {"lr": 1e-2},
        "Rprop": {"lr": 1e-2},
        "RMSprop": {"lr": 1e-2, "centered": True},
        "NAdam": {"lr": 1e-2},
        "RAdam": {"lr": 1e-2},
        "Adagrad": {"lr": 1e-1},
        "Adadelta": {"lr": 1.0},
        "Adamax": {"lr": 1e-2},
        "ASGD": {"lr": 1e-1},
    }
    found = {}
    for name, arguments in classes.items():
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double())
        cut, whole_model = models
        fully_shard(cut, mesh=MESHES["four"])
        ours = getattr(of.optim, name)(cut.parameters(), **arguments)
        theirs = getattr(torch.optim, name)(whole_model.parameters(), **arguments)
        x = torch.randn(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        for _ in range(4):
            for model, optimizer in ((cut, ours), (whole_model, theirs)):
                optimizer.zero_grad()
                model(x).square().sum().backward()
                optimizer.step()
        got, want = ([p.detach() for p in model.parameters()] for model in models)
        wrong = problems(got, want, 1e-9)
        if wrong:
            found[name] = wrong
    return found


def law_of_the_pure_api(layout, dtype, rtol, skips, names=None, compare=compare):
    """Every case of the table on the shards of a layout, as on one process: the problems by case."""
    if not works_on(layout):
        return {}
    found = {}
    for case in CASES:
        if case.name in skips or (names and case.name not in names):
            continue
        problem = attempt(functools.partial(compare, case, dtype, layout, rtol))
        if problem:
            found[case.name] = problem
    return found


def attempt(job):
    """What a job returns, or on any rank raises, agreed on by all, so that none waits for another."""
    try:
        result = job()
    except Exception as error:
        result = [f"{type(error).__name__}: {error}"[:300]]
    return result


# Jobs about verbs


def reductions():
    """Every reduction of every layout against that of the whole leaves."""
    found = {}
    verbs = {
        "sum": of.tree.sum,
        "max": of.tree.max,
        "min": of.tree.min,
        "norm": of.tree.norm,
        "norm 1": lambda x: of.tree.norm(x, 1),
        "norm inf": lambda x: of.tree.norm(x, torch.inf),
        "rms": of.tree.rms,
        "vdot": lambda x: of.tree.vdot(x, of.tree.scale(2.0, x)),
        "norms": of.tree.norms,
        "allclose": lambda x: of.tree.allclose(x, of.tree.scale(1 + 1e-12, x)),
        "count": lambda x: of.tree.reduce(lambda u: (u > 0).sum(), "sum", x),
    }
    for layout in LAYOUTS:
        if not works_on(layout):
            continue
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.complex64):
            values = drawn(SHAPES, dtype, 5)
            own = sharded(layout, values)
            for name, verb in verbs.items():
                if dtype.is_complex and name in ("max", "min", "count"):
                    continue
                got, want = verb(own), verb(values)
                ordinary = all(type(x) is torch.Tensor for x in of.tree.leaves(got))
                wrong = problems(got, want, {torch.float64: 1e-12}.get(dtype, 1e-6))
                wrong += [] if ordinary else ["is no ordinary tensor"]
                bits = [None] * dist.get_world_size()
                if layout in ("fsdp on 4", "hsdp 2 x 2", "fsdp and tensor parallel"):
                    dist.all_gather_object(bits, [x.tolist() for x in of.tree.leaves(got)])
                    wrong += [] if all(x == bits[0] for x in bits) else ["differs between ranks"]
                if wrong:
                    found[f"{name} of {dtype} on {layout}"] = wrong
        values["a"][0, 0] = torch.nan  # which a collective of floats may lose
        for name in ("max", "min", "norm inf"):
            own = sharded(layout, {"a": values["a"].real.double()})
            if not verbs[name](own).isnan():
                found[f"{name} of NaN on {layout}"] = ["is lost"]
    return found


class Turned(NamedTuple):
    """Two trees that change places."""

    first: Any
    second: Any


def states_that_turn():
    """What goes wrong where the next state is the same memory in other places."""

    def update(g, state, params=None, **extra):
        return of.tree.map(lambda x: torch.special.erf(x), g), Turned(of.tree.add(state.second, g), state.first)

    tx = of.GradientTransformation(lambda params: Turned(params, of.tree.scale(2.0, params)), update)
    values, grads = drawn(SMALL, torch.float64, 1), drawn(SMALL, torch.float64, 2)
    found = {}
    for layout in ("fsdp on 4", "hsdp 2 x 2"):
        step = of.make_step(tx, donate=True, backend="eager")
        trees = [
            (of.tree.map(torch.clone, x), of.tree.map(torch.clone, tx.init(x)))
            for x in (sharded(layout, values), values)
        ]
        for (params, state), g in zip(trees, (sharded(layout, grads), grads), strict=True):
            for _ in range(3):
                step(params, state, g)
        wrong = problems(*trees, 1e-12)
        if wrong:
            found[layout] = wrong
    return found


def sent_by_steps():
    """How many collectives a step of the pure pair takes, and the bytes that this process hands to them."""
    rules = {
        "`adamw`": of.adamw(0.1),
        "`clip_by_global_norm`, `adamw`": of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1)),
        "`apply_if_finite(adam)`": of.apply_if_finite(of.adam(0.1), 3),
        "`lamb`": of.lamb(0.1),
        "`novograd`": of.novograd(0.1),
        "`adafactor`": of.adafactor(0.1, min_dim_size_to_factor=2),
        "`sm3`": of.sm3(0.1),
        "`adaptive_grad_clip`, `sgd`": of.chain(of.adaptive_grad_clip(0.1), of.sgd(0.1)),
        "`noisy_sgd`": of.noisy_sgd(0.1, seed=0),
        "`quantize_state(adam)`": of.quantize_state(of.adam(0.1), min_size=1),
        "`torch_muon` on the matrix": of.masked(of.torch_muon(0.1), of.tree.mask_by(has_two_axes)),
    }
    values = (
        {"w": x["w"], "b": x["b"]} for x in (drawn({"w": (64, 32), "b": (32,)}, torch.float32, s) for s in (1, 2))
    )
    params, grads = (
        {n: distribute_tensor(x, MESHES["four"], [S(0)], src_data_rank=None) for n, x in v.items()} for v in values
    )
    found = {}
    for name, tx in rules.items():
        state = tx.init(params)
        with CommDebugMode() as heard, Payload() as payload:
            of.apply_updates(params, tx.update(grads, state, params)[0])
        found[name] = heard.get_total_counts(), payload.bytes
    return found


MATRICES = {
    "soap": of.soap(0.01, precondition_frequency=2),
    "shampoo": of.shampoo(0.01, b2=0.9, target_dims=None, grafting="adam"),
    "kl_shampoo": of.kl_shampoo(0.01),
    "splus": of.splus(0.01),
    "kron_whiten": of.kron_whiten(0.01),
    "kron": of.kron(0.01),
}


def shares_of_work():
    """The products of matrices of a step that this rank has done, of those of one process; and its collectives."""
    found = {}
    params = {f"w{i}": torch.randn(32, 32, generator=torch.Generator().manual_seed(i)) for i in range(8)}
    for name, tx in MATRICES.items():
        own = {n: distribute_tensor(p, MESHES["two"], [S(0)], src_data_rank=None) for n, p in params.items()}
        flops, sent = [], 0
        for tree in (params, own) if works_on("fsdp on 2") else ():
            _, state = tx.update(tree, tx.init(tree), tree)
            with FlopCounterMode(display=False) as counted, CommDebugMode() as heard:
                tx.update(tree, state, tree)
            flops.append(counted.get_total_flops())
            sent = heard.get_total_counts()
        found[name] = (flops[1] / flops[0], sent) if flops else None
    return found


def gradients_in_parts():
    """What goes wrong where gradients are still to be summed, or lie otherwise than their parameters."""
    mesh, found = MESHES["two"], {}
    if dist.get_rank() > 1:
        return found
    values, grads = drawn(SHAPES, torch.float64, 1), drawn(SHAPES, torch.float64, 2)
    share = 0.25 if dist.get_rank() == 0 else 0.75
    params = {n: distribute_tensor(x, mesh, [S(0) if n == "a" else R], src_data_rank=None) for n, x in values.items()}
    for name, tx in {"adam": of.adam(0.1), "clip": of.chain(of.clip_by_global_norm(1.0), of.sgd(0.1))}.items():
        own = {n: DTensor.from_local(g * share, mesh, [Partial()], run_check=False) for n, g in grads.items()}
        got, state = of.make_step(tx)(params, tx.init(params), own)
        want, single = of.make_step(tx)(values, tx.init(values), grads)
        wrong = problems(got, want, 1e-12) + problems(state, single, 1e-12)
        with CommDebugMode() as heard:
            tx.update(own, tx.init(params), params)
        wrong += [] if heard.get_total_counts() == 1 + (name == "clip") else [str(heard.get_comm_counts())]
        if wrong:
            found[name] = wrong
    return found


def pure_steps():
    """What goes wrong in steps by kernels that make new shards, and how they say that they ran."""
    found = {}
    rules = {
        "clip": of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1, mask=of.tree.is_matrix)),
        "lamb": of.lamb(0.1),
        "finite": of.apply_if_finite(of.sgd(0.1, 0.9), 3),
    }
    values, grads = drawn(SHAPES, torch.float64, 1), drawn(SHAPES, torch.float64, 2)
    for layout in ("fsdp on 4", "hsdp 2 x 2", "fsdp and tensor parallel", "mixed with plain"):
        for name, tx in rules.items():
            step, single = of.make_step(tx), of.make_step(tx, backend="eager")
            got, want = ((own, tx.init(own)) for own in (sharded(layout, values), values))
            where = placements(got)
            for _ in range(3):
                got, want = step(*got, sharded(layout, grads)), single(*want, grads)
            wrong = problems(got, want, 1e-12) + ([] if placements(got) == where else ["it lies elsewhere"])
            told = step.explain()
            wrong += [] if told.startswith("fused") and "all_reduce" in told else [told[:200]]
            # Gradients that lie otherwise than those of the trace are not taken for them.
            wrong += problems(step(*got, values), single(*want, values), 1e-12)
            if wrong:
                found[f"{name} on {layout}"] = wrong
    return found


class Payload:
    """Counts the bytes that are handed to the collectives of torch.distributed."""

    def __enter__(self):
        self.bytes, self._before = 0, (dist.all_reduce, dist.all_to_all_single)

        def all_reduce(x, *args, **kwargs):
            self.bytes += x.nbytes
            return self._before[0](x, *args, **kwargs)

        def all_to_all_single(output, x, *args, **kwargs):
            self.bytes += x.nbytes
            return self._before[1](output, x, *args, **kwargs)

        dist.all_reduce, dist.all_to_all_single = all_reduce, all_to_all_single
        return self

    def __exit__(self, *_):
        dist.all_reduce, dist.all_to_all_single = self._before


class NoReads(torch.utils._python_dispatch.TorchDispatchMode):
    """Whoever reads a tensor on the host is told so."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a tensor is read on the host")
        return func(*args, **(kwargs or {}))


def read(tx, params, grads, extra):
    """Nothing, after a step in which nothing may be read."""
    state = tx.init(params)
    with NoReads():
        tx.update(grads, state, params, **extra)
    return []


def host_reads(skips):
    """Which cases read a tensor on the host while they step shards."""
    found = {}
    params, grads = (sharded("fsdp on 4", drawn(SMALL, torch.float64, seed)) for seed in (1, 2))
    for case in CASES:
        if case.name not in skips and "meta" not in case.skips:
            wrong = attempt(functools.partial(read, case.plain(), params, grads, case.extra))
            if wrong:
                found[case.name] = wrong
    return found


def under_vmap():
    """What vmap says of a verb that communicates."""
    group = MESHES["four"].get_group()
    try:
        torch.func.vmap(lambda x: of.tree._shards.reduce_vector(x, "sum", group))(torch.ones(3, 2))
    except RuntimeError as error:
        return str(error)
    return "nothing"


def patterns_of_absence():
    """What goes wrong where gradients of shards come and go, and how often rules are traced for it."""
    rules = {
        "adamw": of.adamw(0.1),
        "clip": of.chain(of.clip_by_global_norm(1.0), of.adamw(0.1), of.params_ema(0.9)),
        "lamb": of.lamb(0.1),
        "finite": of.apply_if_finite(of.sgd(0.1, 0.9), 3),
    }
    shapes = {f"p{i}": [(4, 3), (5,), (2, 3)][i % 3] for i in range(6)}
    found, generator = {}, torch.Generator().manual_seed(0)
    here = [(torch.rand(len(shapes), generator=generator) < 0.5).tolist() for _ in range(16)]
    for (name, tx), donate in itertools.product(rules.items(), (True, False)):
        shared.clear()
        step, single = of.make_step(tx, donate=donate), of.make_step(tx, backend="eager")
        values = drawn(shapes, torch.float64, 1)
        cut = {n: distribute_tensor(x, MESHES["four"], [S(0)], src_data_rank=None) for n, x in values.items()}
        got, want = (cut, tx.init(cut)), (values, tx.init(values))
        with mock.patch.object(_known, "trace", wraps=_known.trace) as traced:
            for number, pattern in enumerate(here):
                whole_grads = drawn(shapes, torch.float64, number)
                grads = {
                    n: distribute_tensor(x, MESHES["four"], [S(0)], src_data_rank=None) for n, x in whole_grads.items()
                }
                absent = [n for n, is_here in zip(shapes, pattern, strict=True) if not is_here]
                for n in absent:
                    grads[n] = whole_grads[n] = None
                got, want = step(*got, grads), single(*want, whole_grads)
        wrong = problems(got, want, 1e-11)
        wrong += [] if traced.call_count <= 9 else [f"is traced {traced.call_count} times"]
        wrong += [] if step.explain().startswith("fused") else [step.explain()]
        if wrong:
            found[f"{name}, {donate}"] = wrong
    return found
