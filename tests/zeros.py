"""Jobs about states that are shared out among replicas; see `ranks`."""

import torch
import torch.distributed as dist
from cases import CASES
from shards import CASE, MESHES, SMALL, STEPS, attempt, drawn, gradients, problems, whole_run
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

import optimfn as of


def own_gradients(grads, size):
    """What a replica has of gradients: parts that differ, and whose mean is the whole."""
    share = 2.0 * (dist.get_rank() + 1) / (size + 1)  # of 1 on the average
    return of.tree.scale(share, grads)


def follows(name, size, stage, dtype, rtol, layout="leaves"):
    """What goes wrong when replicas with parts of the gradients share out a case."""
    case, params = CASE[name], drawn(SMALL, dtype, 1)
    tx = of.distributed.zero(case.plain(), MESHES["two" if size == 2 else "four"], stage=stage, layout=layout)
    with CommDebugMode() as heard:
        state = tx.init(params)
    found = [f"init communicates: {dict(heard.get_comm_counts())}"] if heard.get_total_counts() else []
    for grads in gradients(SMALL, dtype, STEPS):
        updates, state = tx.update(own_gradients(grads, size), state, params, **case.extra)
        params = of.apply_updates(params, updates)
    want, whole_state = whole_run(name, dtype)
    if layout == "flat":
        state = of.distributed.relaid(state, tx, case.plain(), params)
    found += problems(params, want, rtol) + [f"state: {x}" for x in problems(state, whole_state, rtol)]
    return found


def law(size, stage, dtype, rtol, skips, names=None, layout="leaves"):
    """The same of every case, or of some: the problems by case."""
    if dist.get_rank() >= size:
        return {}
    found = {}
    for case in CASES:
        if case.name in skips or (names and case.name not in names):
            continue
        wrong = attempt(lambda case=case: follows(case.name, size, stage, dtype, rtol, layout))
        if wrong:
            found[case.name] = wrong
    return found


def sent(stage, averaged, layout="leaves"):
    """The collectives and bytes of a step of Adam, and the bytes of its moments here."""
    params, grads = (
        drawn({"w": (64, 32), "b": (32,)}, torch.float32, 1),
        drawn({"w": (64, 32), "b": (32,)}, torch.float32, 2),
    )
    tx = of.distributed.zero(of.adamw(0.1), MESHES["four"], stage=stage, averaged=averaged, layout=layout)
    state = tx.init(params)
    with CommDebugMode() as heard:
        _, state = tx.update(grads, state, params)
    moments = [x.to_local().nbytes for x in of.tree.leaves(state) if isinstance(x, DTensor)]
    return heard.get_total_counts(), sum(moments)


def edges():
    """What goes wrong with half precision, complex numbers, numbers, empty and absent leaves."""
    found = {}
    kinds = {"half": torch.bfloat16, "complex": torch.complex64}
    for name, dtype, layout in [(*kind, own) for kind in kinds.items() for own in ("leaves", "flat")]:
        params = {"a": torch.ones(3, 5, dtype=dtype), "e": torch.ones(0, 2, dtype=dtype), "none": torch.ones(2)}
        params |= {"n": torch.ones((), dtype=dtype)}
        grads = of.tree.map(lambda p: torch.full_like(p, 0.5), {k: v for k, v in params.items() if k != "none"}) | {
            "none": None
        }
        if layout == "flat":
            grads["none"] = torch.ones(2)
        tx = of.kahan(of.chain(of.clip_by_global_norm(10.0), of.adam(0.1)))
        cut = of.distributed.zero(tx, MESHES["four"], layout=layout)
        got, want = (list(tx_.update(grads, tx_.init(params), params)) for tx_ in (cut, tx))
        if layout == "flat":
            got[1] = of.distributed.relaid(got[1], cut, tx, params)
        wrong = problems(got, want, 1e-6)
        if wrong:
            found[f"{name} in {layout}"] = wrong
    return found


def refused(name):
    """What is said to leaves that lie in shards already."""
    x = torch.distributed.tensor.distribute_tensor(torch.ones(4), MESHES["four"], [torch.distributed.tensor.Shard(0)])
    try:
        of.distributed.zero(of.adam(0.1), MESHES["four"]).init({"w": x})
    except TypeError as error:
        return str(error)
    return name


def vectors_in_buckets():
    """What goes wrong when the parts of a vector are sent in several pieces."""
    flat = of.distributed._flat.Flat(of.distributed._comm.Peers(MESHES["four"]), 4 * 8 * 3)  # three numbers of a part
    values = drawn(SMALL, torch.float64, 1) | {"z": torch.randn(3, dtype=torch.complex64).fill_(2 - 1j)}
    grads = of.tree.map(lambda x: x * (dist.get_rank() + 1) * 0.4, values)
    with CommDebugMode() as heard:
        parts = flat.mean(grads)
        got = flat.whole(parts, grads)
    wrong = problems(got, values, 1e-6) + problems(flat.cut(values), parts and of.tree.whole(parts), 1e-6)
    total = heard.get_total_counts()
    return (
        {"buckets": wrong + ([] if total == 2 * (4 + 1) else [f"{total} collectives"])} if wrong or total != 10 else {}
    )


def empty_trees():
    """What goes wrong with trees without leaves, and leaves without elements."""
    found = {}
    for layout in ("leaves", "flat"):
        for params in ({}, {"e": torch.zeros(0, 3)}):
            tx = of.distributed.zero(of.adam(0.1), MESHES["four"], layout=layout)
            updates, _ = tx.update(params, tx.init(params), params)
            if of.tree.structure(updates) != of.tree.structure(params):
                found[f"{layout} {params}"] = [str(updates)]
    return found


def from_layout_to_layout():
    """What goes wrong when a run changes its layout, and its number of replicas."""
    params, sequence = drawn(SMALL, torch.float64, 1), gradients(SMALL, torch.float64, 5)
    tx = of.chain(of.clip_by_global_norm(1.0), of.adamw(of.linear_schedule(0.1, 0.0, 20)), of.params_ema(0.9))
    places = [
        of.distributed.zero(tx, MESHES["four"], layout="flat", averaged=True),
        of.distributed.zero(tx, MESHES["four"], averaged=True),
        tx,
        of.distributed.zero(tx, MESHES["four"], layout="flat", averaged=True),
        tx,
    ]
    state, now = places[0].init(params), places[0]
    want, whole_state = params, tx.init(params)
    for grads, place in zip(sequence, places, strict=True):
        state, now = of.distributed.relaid(state, now, place, params), place
        updates, state = now.update(grads, state, params)
        params = of.apply_updates(params, updates)
        updates, whole_state = tx.update(grads, whole_state, want)
        want = of.apply_updates(want, updates)
    wrong = problems([params, state], [want, whole_state], 1e-12)
    return {"layouts": wrong} if wrong else {}


def rule():
    """A rule that communicates itself, and keeps an average."""
    return of.chain(of.clip_by_global_norm(1.0), of.adamw(of.linear_schedule(0.1, 0.0, 20)), of.params_ema(0.9))


def go_on(size, first, last, old, new, layout="leaves"):
    """Read a checkpoint, if there is one, take some steps on some replicas, and write another."""
    if size and dist.get_rank() >= size:
        return None
    mesh = {0: None, 2: MESHES.get("two"), 4: MESHES.get("four")}[size]
    group = None if mesh is None else mesh.get_group()
    params = drawn(SMALL, torch.float64, 1)
    tx = of.distributed.zero(rule(), mesh, layout=layout)
    state = tx.init(params)
    if old is not None:
        params, state = of.distributed.load(old, of.tree.zeros_like(params), tx.init(params), tx, group=group)
    for grads in gradients(SMALL, torch.float64, 10)[first:last]:
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
    if new is not None:
        of.distributed.save(new, params, state, tx, group=group)
    return params, of.distributed.relaid(state, tx, rule(), params)


def behind_an_optimizer(layout):
    """What goes wrong behind `Optimizer`, with what replicas have of the gradients."""
    mesh, nets = MESHES["four"], []
    for cut in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3)).double()
        tx = of.chain(of.clip_by_global_norm(0.5), of.adamw(0.05))
        optimizer = of.Optimizer(net, of.distributed.zero(tx, mesh, layout=layout) if cut else tx)
        for step in range(4):
            optimizer.zero_grad()
            x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step)).double()
            (net(x[dist.get_rank() :: 4] if cut else x) ** 2).mean().backward()
            optimizer.step()
        nets.append(of.tree.map(torch.detach, dict(net.named_parameters())))
    wrong = problems(*nets, 1e-12)
    return {"optimizer": wrong} if wrong else {}
