"""Jobs about what replicas say to each other; see `ranks`."""

import contextlib
import copy
import functools
import tempfile

import torch
import torch.distributed as dist
from shards import MESHES, drawn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel as DDP

import optimfn as of
from optimfn.distributed import _comm as comm


def is_here(size):
    """Whether this rank is among the first two, or the four."""
    return dist.get_rank() < size


def own_tree(rank, dtype=torch.float32):
    """Leaves of several dtypes and shapes, one absent, others on each rank."""
    return {
        "a": torch.full((3, 2), 1.0 + rank, dtype=dtype),
        "none": None,
        "b": [torch.tensor(2.0 * rank, dtype=torch.float64), torch.zeros(0), torch.tensor(rank, dtype=dtype)],
        "c": torch.full((4,), 1.0 + 1j * rank),
    }


def verbs():
    """What is wrong with the collectives of `_comm` on two ranks."""
    if not is_here(2):
        return []
    peers, rank = comm.Peers(MESHES["two"]), dist.get_rank()
    sent, found = own_tree(rank), []
    want = {
        "a": torch.full((3, 2), 1.5),
        "b": [torch.tensor(1.0).double(), torch.zeros(0), torch.tensor(0.5)],
        "c": torch.full((4,), 1 + 0.5j),
    }
    flights = {
        "mean": comm.mean(sent, peers),
        "one by one": comm.mean(sent, peers, None, 1),
        "in low precision": comm.mean(sent, peers, torch.bfloat16),
    }
    for name, got in flights.items():
        if got["none"] is not None or not torch.equal(got["a"], want["a"]) or not torch.equal(got["c"], want["c"]):
            found.append(f"{name}: {got}")
        if not all(map(torch.equal, got["b"], want["b"])):
            found.append(f"{name}: {got}")
    rows = torch.arange(4.0).reshape(2, 2) + 10 * rank
    one_by_one = {
        "gather": (comm.all_gather(rows[0], peers), torch.tensor([[0.0, 1], [10, 11]])),
        "exchange": (
            comm.all_to_all(rows, peers),
            torch.tensor([[2.0 * rank, 2 * rank + 1], [10 + 2 * rank, 11 + 2 * rank]]),
        ),
        "scatter": (comm.reduce_scatter(rows, peers), torch.tensor([10.0 + 4 * rank, 12 + 4 * rank])),
        "broadcast": (comm.broadcast(rows[0], 1, peers), torch.tensor([10.0, 11])),
        "max": (comm.all_reduce(rows[0], peers, "max"), torch.tensor([10.0, 11])),
    }
    found += [f"{name}: {got}" for name, (got, wanted) in one_by_one.items() if not torch.equal(got, wanted)]
    w = torch.ones(2, requires_grad=True)
    comm.mean({"w": w * (rank + 1)}, peers)["w"].sum().backward()
    return found if torch.equal(w.grad, torch.full((2,), (rank + 1) / 2)) else [*found, f"derivative: {w.grad}"]


# Transformations

SHAPES = {"w": (6, 4), "b": (4,), "k": (3, 2, 2)}


def replicas(size):
    """The mesh of some replicas, and the rank in it; `None` for the ranks that stay outside."""
    if dist.get_rank() >= size:
        return None
    return MESHES["two" if size == 2 else "four"]


def batches(size, step, dtype=torch.float64):
    """The gradients of every replica at a step."""
    return [drawn(SHAPES, dtype, 100 * step + rank) for rank in range(size)]


def mean_of(trees):
    """The mean of trees, in the order of the replicas."""
    return of.tree.scale(1 / len(trees), functools.reduce(of.tree.add, trees))


def far(got, want):
    """The largest distance between two trees."""
    pairs = zip(of.tree.leaves(got), of.tree.leaves(want), strict=True)
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs if y.numel())


def run(tx, params, sequence, finish=False):
    """The parameters and the state after steps of the pure pair."""
    state = tx.init(params)
    for grads in sequence:
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
    return of.distributed.drain(tx, params, state) if finish else (params, state)


def run_optimizer(tx, params, sequence, finish=False):
    """The same behind `Optimizer`."""
    own = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = of.Optimizer([*own.items()], tx)
    for grads in sequence:
        for name, p in own.items():
            p.grad = grads[name].clone()
        optimizer.step()
    if finish:
        optimizer.step(drain=True)
    return of.tree.map(torch.detach, own)


def whole_means(size):
    """What goes wrong where replicas with a part of the batch each are to be one process with all of it."""
    mesh = replicas(size)
    if mesh is None:
        return []
    found, params, rank = [], drawn(SHAPES, torch.float64, 1), dist.get_rank()
    sequence = [batches(size, step) for step in range(4)]
    own, means = [each[rank] for each in sequence], [mean_of(each) for each in sequence]
    rules = {
        "adamw": of.adamw(0.1),
        "clip": of.chain(of.clip_by_global_norm(0.5), of.sgd(0.1, 0.9)),
        "adafactor": of.adafactor(0.1, min_dim_size_to_factor=2),
        "multi_steps": of.multi_steps(of.adam(0.1), 2),
    }
    for name, rule in rules.items():
        tx = of.chain(of.distributed.all_reduce_mean(mesh, bucket_bytes=200), rule)
        late = of.distributed.deferred(of.chain(of.distributed.all_reduce_mean(mesh), rule))
        outside = of.chain(of.distributed.deferred(of.distributed.all_reduce_mean((mesh, "dp"))), of.scale(-0.1))
        want = run(rule, params, means)[0]
        for kind, got in {
            "pure": run(tx, params, own)[0],
            "late": run(late, params, own, True)[0],
            "behind an optimizer": run_optimizer(tx, params, own),
            "late behind an optimizer": run_optimizer(late, params, own, True),
        }.items():
            if not far(got, want) <= 1e-12:
                found.append(f"{name}, {kind}: off by {far(got, want):.1e}")
    early, state = run(late, params, own)
    if not far(early, run(rule, params, means[:-1])[0]) <= 1e-12:
        found.append("the last step is not outstanding")
    if far(of.distributed.flush(state).mean, means[-1]) > 1e-12 or not bool(state.pending):
        found.append("flush gives another mean")
    if not far(run(outside, params, own)[0], run(of.scale(-0.1), params, means[:-1])[0]) <= 1e-12:
        found.append("only the mean is late: wrong")
    return found


def travelling(folder):
    """What goes wrong behind `Optimizer` while a mean is on its way: saved, read, failed and compiled."""
    mesh, found = replicas(2), []
    if mesh is None:
        return found
    params, steps = drawn(SHAPES, torch.float64, 0), [batches(2, step) for step in range(4)]
    own, means = [each[dist.get_rank()] for each in steps], [mean_of(each) for each in steps]
    broken = [False]

    def maybe(updates, params):
        if broken[0]:
            raise OverflowError("on purpose")
        return updates

    rule = of.chain(of.distributed.all_reduce_mean(mesh), of.stateless(maybe), of.adam(0.1))
    late = of.distributed.deferred(rule)
    mine = {name: torch.nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = of.Optimizer([*mine.items()], late)

    def state_of(tree):
        return next(node for _, node in of.tree.walk(tree) if type(node) is of.distributed.DeferredState)

    def step(grads):
        for name, p in mine.items():
            p.grad = grads[name].clone()
        optimizer.step()

    step(own[0])
    now = state_of(optimizer.state_tree())
    if not int(now.ticket) or far(now.mean, own[0]) != 0:
        found.append("a step waits for its mean")
    if dist.get_rank() == 0:  # one process saves alone, and all go on
        entries = optimizer.state_dict()["state"].values()
        saved = {name: entry["deferred.mean"] for name, entry in zip(mine, entries, strict=True)}
        if far(saved, means[0]) > 1e-12:
            found.append("what is saved is no mean")
    step(own[1])
    broken[0], before = True, [p.detach().clone() for p in mine.values()]
    try:
        step(own[2])
        found.append("it does not fail")
    except OverflowError:
        pass
    broken[0] = False
    if far([*map(torch.detach, mine.values())], before) != 0:
        found.append("a failed step moves parameters")
    step(own[2])
    pure, state = run(late, params, own[:3])
    of.distributed.save(folder, pure, state, late, group=mesh.get_group())
    pure, state = of.distributed.load(folder, pure, late.init(params), late, group=mesh.get_group())
    if int(state.ticket) or far(state.mean, means[2]) > 1e-12:
        found.append("a checkpoint holds no mean")
    updates, state = late.update(own[3], state, pure)
    pure = of.apply_updates(pure, updates)
    step(own[3])
    if far(of.tree.map(torch.detach, mine), pure) > 1e-12:
        found.append("behind an optimizer it goes elsewhere")
    try:
        torch.compile(lambda g, s, p: late.update(g, s, p), backend="eager")(own[3], state, pure)
        found.append("a compiled step takes what was sent for its mean")
    except RuntimeError as error:
        found += [] if "call flush(state)" in str(error) else [str(error)[:300]]
    return found


# Compressors

TALL = {"w": (24, 18), "b": (5,), "k": (8, 6, 3), "v": (3, 3)}
COMPRESSORS = {
    "cast": lambda: of.distributed.cast(torch.bfloat16),
    "powersgd 1": lambda: of.distributed.powersgd(1),
    "powersgd 4": lambda: of.distributed.powersgd(4, min_rate=1),
    "sign_1bit": lambda: of.distributed.sign_1bit(),
    "int8_block": lambda: of.distributed.int8_block(16),
    "topk": lambda: of.distributed.topk(0.1),
}


def steps_of(size, number, dtype=torch.float32):
    """The gradients of every replica, step by step."""
    return [[drawn(TALL, dtype, 1000 * step + rank) for rank in range(size)] for step in range(number)]


def compressed(name, size, number, error_feedback=True, dtype=torch.float32):
    """The means of all steps, the own error of this replica, and the bytes of each step."""
    mesh = replicas(size)
    if mesh is None:
        return None
    tx = of.distributed.compressed_mean(mesh, COMPRESSORS[name](), error_feedback=error_feedback)
    state, means = tx.init(drawn(TALL, dtype, 0)), []
    with of.distributed.comm_trace() as sent:
        for grads in steps_of(size, number, dtype):
            got, state = tx.update(grads[dist.get_rank()], state)
            means.append(got)
    return means, state, (sent.calls / number, sent.bytes / number)


def mlp():
    """A small model, the same everywhere."""
    torch.manual_seed(7)
    return torch.nn.Sequential(
        torch.nn.Linear(20, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12), torch.nn.Linear(12, 4)
    )


def loss_of(model, step, rank):
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(100 * step + rank))
    return model(x).square().mean()


def ddp_and_rules(size, name, rank=1):
    """How far plain replicas with our rule are from torch's own hook under DistributedDataParallel, step by step."""
    mesh = replicas(size)
    if mesh is None:
        return None
    group, here, lr, number = mesh.get_group(), dist.get_rank(), 0.05, 8
    hooked, plain = mlp(), mlp()
    ddp = DDP(hooked, process_group=group)
    hook_state = powerSGD_hook.PowerSGDState(
        group, matrix_approximation_rank=rank, start_powerSGD_iter=2, min_compression_rate=1.0
    )
    if name == "powersgd":
        ddp.register_comm_hook(hook_state, powerSGD_hook.powerSGD_hook)
        rule = of.distributed.compressed_mean(mesh, of.distributed.powersgd(rank, min_rate=1), start=2)
    else:  # DDP knows the hook by its name, and refuses it on the CPU
        ddp.register_comm_hook(group, lambda group, bucket: default_hooks.bf16_compress_hook(group, bucket))
        rule = of.distributed.compressed_mean(mesh, of.distributed.cast(torch.bfloat16), error_feedback=False)
    params = {name: p.detach().clone() for name, p in plain.named_parameters()}
    tx = of.chain(rule, of.sgd(lr))
    state, found = tx.init(params), []
    for step in range(number):
        if name == "powersgd" and step == 2:
            state = (with_first_factors(state[0], params, hook_state), *state[1:])
        ddp.zero_grad()
        loss_of(ddp, step, here).backward()
        with torch.no_grad():
            for p in hooked.parameters():
                p -= lr * p.grad
        grads = torch.func.grad(
            lambda p, step=step: loss_of(lambda x: torch.func.functional_call(plain, p, x), step, here)
        )(params)
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
        found.append(far(params, {name: p.detach() for name, p in hooked.named_parameters()}))
    return found


def with_first_factors(state, params, hook_state):
    """The state with the first factors that torch's hook draws in the order of its bucket, which is the reverse."""
    numbers = copy.deepcopy(hook_state.rng)
    generator = torch.Generator().manual_seed(int(numbers.randint(1_000_000_000)))
    qs = of.tree.leaves(state.compressor.factors)
    for i, q in reversed([*enumerate(qs)]):
        if q.numel():
            qs[i] = torch.randn(q.shape, generator=generator)
    return state._replace(compressor=of.distributed.PowerSGDState(of.tree.unflatten(state.compressor.factors, qs)))


def after_no_sync():
    """How far means of gradients gathered under `no_sync` are from those that DDP takes itself."""
    mesh = replicas(2)
    if mesh is None:
        return None
    models = [mlp(), mlp()]
    wrapped = [DDP(model, process_group=mesh.get_group()) for model in models]
    for step in range(3):
        own = step < 2
        for ddp, silent in zip(wrapped, (own, True), strict=True):
            with ddp.no_sync() if silent else contextlib.nullcontext():
                loss_of(ddp, step, dist.get_rank()).backward()
    grads = [{name: p.grad for name, p in model.named_parameters()} for model in models]
    tx = of.distributed.all_reduce_mean(mesh)
    return far(tx.update(grads[1], tx.init(grads[1]))[0], grads[0])


# Checkpoints


def saved_and_read(name, size, folder, first):
    """Compressed steps that are saved, or that go on from what was saved, perhaps by another number of replicas.

    Returns:
        Before saving, or after reading, the mean of the errors over the replicas, the error of this one, and the means
        of two more steps.
    """
    mesh = replicas(size)
    if mesh is None:
        return None
    group, rank = mesh.get_group(), dist.get_rank()
    tx = of.distributed.compressed_mean(mesh, COMPRESSORS[name](), start=1)
    params = drawn(TALL, torch.float32, 0)
    state = tx.init(params)
    sequence = steps_of(4, 6)
    if first:
        for grads in sequence[:4]:
            _, state = tx.update(grads[rank], state)
        of.distributed.save(folder, params, state, tx, group=group)
    else:
        params, state = of.distributed.load(folder, params, state, tx, group=group)
    errors, after = (comm.mean(state.error, comm.Peers(mesh)), state.error), []
    if isinstance(state.compressor, of.distributed.OwnerState):  # what owners have not passed on is lost as little
        parts = [None] * size
        dist.all_gather_object(parts, state.compressor.owned, group=group)
        errors = (*errors, torch.cat(parts))
    for grads in sequence[4:]:
        got, state = tx.update(grads[rank], state)
        after.append(got)
    return (*errors, after)


# Hooks


def trained(model, wrapped, steps=4, lr=0.05):
    """The losses of a few steps; the model is changed."""
    for step in range(steps):
        wrapped.zero_grad()
        loss_of(wrapped, step, dist.get_rank()).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= lr * p.grad
    return {name: p.detach() for name, p in model.named_parameters()}


def hooks():
    """How far models with our hooks in torch's wrappers are from plain replicas with the rule, and from exact means."""
    found = {}
    if dist.get_rank() < 2:
        hooked, plain, compressor = mlp(), mlp(), of.distributed.topk(0.1)
        ddp = DDP(hooked, process_group=MESHES["two"].get_group())
        ddp.register_comm_hook(None, of.distributed.ddp_comm_hook(compressor, MESHES["two"]))
        tx = of.chain(of.distributed.compressed_mean(MESHES["two"], compressor), of.sgd(0.05))
        optimizer = of.Optimizer(plain, tx)
        got = trained(hooked, ddp)
        for step in range(4):
            optimizer.zero_grad()
            loss_of(plain, step, dist.get_rank()).backward()
            optimizer.step()
        found["ddp"] = far(got, {name: p.detach() for name, p in plain.named_parameters()})
    mesh, cut, whole = MESHES["square"], mlp(), mlp()
    for module in [*(m for m in cut if isinstance(m, torch.nn.Linear)), cut]:
        fully_shard(module, mesh=mesh["shard"])
        if module is not cut:
            module.set_all_reduce_hook(of.distributed.fsdp_all_reduce_hook(of.distributed.topk(1.0), mesh["rep"]))
    got = {name: p.full_tensor() for name, p in trained(cut, cut).items()}
    found["fsdp"] = far(got, trained(whole, DDP(whole, process_group=MESHES["four"].get_group())))
    return found


# What is sent

TOLD = {
    "`all_reduce_mean(group)`": lambda group: of.distributed.all_reduce_mean(group),
    "`all_reduce_mean(group, dtype=torch.bfloat16)`": lambda g: of.distributed.all_reduce_mean(g, dtype=torch.bfloat16),
    "`deferred(all_reduce_mean(group))`": lambda g: of.distributed.deferred(of.distributed.all_reduce_mean(g)),
} | {
    f"`compressed_mean(group, {told})`": functools.partial(of.distributed.compressed_mean, compressor=one)
    for told, one in {
        "cast(torch.bfloat16)": of.distributed.cast(torch.bfloat16),
        "powersgd(1)": of.distributed.powersgd(1),
        "topk(0.01)": of.distributed.topk(0.01),
        "int8_block(512)": of.distributed.int8_block(512),
        "sign_1bit()": of.distributed.sign_1bit(),
    }.items()
}


def sent_in_a_step(size):
    """The collectives and the bytes of a step of each rule, and whether `init` says anything."""
    mesh, found = replicas(size), {}
    if mesh is None:
        return None
    params = {name: p.detach() for name, p in mlp().named_parameters()}
    for name, make in TOLD.items():
        tx = make(mesh)
        with of.distributed.comm_trace() as before:
            state = tx.init(params)
        # The first mean that travels in a group also agrees on a mark for its tickets.
        of.distributed.flush(tx.update(params, state, params)[1])
        with of.distributed.comm_trace() as sent:
            of.distributed.flush(tx.update(params, state, params)[1])
        found[name] = sent.calls, sent.bytes, before.calls
    return found


# Other executions


def compiled(names):
    """What is wrong with one graph of a step of some rules, one behind the other."""
    mesh = replicas(2)
    if mesh is None:
        return []
    params, rank = drawn(TALL, torch.float32, 0), dist.get_rank()
    tx = of.chain(*(TOLD[name](mesh) for name in names))
    step = torch.compile(lambda g, s: tx.update(g, s), fullgraph=True, backend="aot_eager")
    own, state = tx.init(params), tx.init(params)
    for grads in steps_of(2, 2):
        got, own = step(grads[rank], own)
        want, state = tx.update(grads[rank], state)
    torch._dynamo.reset()
    wrong = far(got, want), far(own, state)
    return [] if max(wrong) == 0 else [f"off by {wrong}"]


def on_shards():
    """What is wrong where the replicas are an axis of a mesh whose other axis cuts the leaves."""
    mesh, found, rank = MESHES["square"], [], dist.get_rank() // 2
    even, odd = {"w": (24, 18), "k": (8, 6, 3)}, {"w": (5, 3), "b": (3,)}
    rules = {
        "mean": (of.distributed.all_reduce_mean((mesh, "rep")), odd),
        "topk": (of.distributed.compressed_mean(mesh["rep"], of.distributed.topk(0.2)), odd),
        "cast": (of.distributed.compressed_mean((mesh, 0), of.distributed.cast(torch.bfloat16)), odd),
        "powersgd": (of.distributed.compressed_mean(mesh["rep"], of.distributed.powersgd(2)), even),
    }
    for name, (tx, shapes) in rules.items():
        values = [[drawn(shapes, torch.float32, 10 * step + r) for r in range(2)] for step in range(3)]

        def laid(leaves):
            return {
                n: distribute_tensor(x, mesh, [Replicate(), Shard(0)], src_data_rank=None) for n, x in leaves.items()
            }

        params = laid(values[0][0])
        state, single = tx.init(params), tx.init({n: x.to_local() for n, x in params.items()})
        for both in values:
            grads = laid(both[rank])
            got, state = tx.update(grads, state, params)
            want, single = tx.update({n: x.to_local() for n, x in grads.items()}, single)
            if far({n: x.to_local() for n, x in got.items()}, want) > 0:
                found.append(f"{name}: not what the shards give")
        if name != "mean":
            error = next(iter(state.error.values()))
            shape = next(iter(params.values())).shape
            if error.placements != (Shard(0), Shard(1)) or error.shape != (2, *shape):
                found.append(f"{name}: {error.placements}")
            folder = [tempfile.mkdtemp()]
            dist.broadcast_object_list(folder)
            of.distributed.save(folder[0], params, state, tx)
            _, read = of.distributed.load(folder[0], params, tx.init(params), tx)
            here = [x.to_local() if hasattr(x, "to_local") else x for x in of.tree.leaves(state)]
            there = [x.to_local() if hasattr(x, "to_local") else x for x in of.tree.leaves(read)]
            found += [f"{name}: read otherwise" for x, y in zip(here, there, strict=True) if not torch.equal(x, y)]
    for compressor in (of.distributed.sign_1bit(), of.distributed.powersgd(1)):
        try:
            of.distributed.compressed_mean(mesh["rep"], compressor).init(laid({"w": torch.ones(5, 3)}))
            found.append(f"{compressor} takes what it cannot")
        except ValueError as error:
            found += [] if "take topk or cast" in str(error) else [str(error)]
    return found
