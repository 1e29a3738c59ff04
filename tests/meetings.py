"""Jobs of replicas that step by themselves and meet now and then, and the same in one process; see `ranks`."""

import math
from collections import OrderedDict

import pytest
import torch
import torch.distributed as dist
import torch.distributed.algorithms.model_averaging.averagers as averagers
import torch.distributed.algorithms.model_averaging.hierarchical_model_averager as hierarchical
from shards import MESHES

import optimfn as of
from optimfn.distributed import _comm, _flight

SHAPES = {"a": (5, 3), "b": (6,), "c": (4, 3, 2), "d": ()}


def start(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def gradient(params, replica, step):
    """Of a quadratic whose minimum is another for each replica and step."""
    generator = torch.Generator().manual_seed(1000 * replica + step)
    return {name: (p.float() - torch.randn(p.shape, generator=generator)).to(p.dtype) for name, p in params.items()}


def mesh_of(size):
    return MESHES["two" if size == 2 else "four"]


RULES = {
    "local sgd": lambda group: of.distributed.local_sgd(of.sgd(0.1, momentum=0.9), group, 4),
    "diloco": lambda group: of.distributed.diloco(of.adamw(0.05), group, 4),
    "fragments": lambda group: of.distributed.diloco(of.adamw(0.05), group, 4, fragments=2),
    "sequential": lambda group: of.distributed.diloco(of.adamw(0.05), group, 6, fragments=3, split="sequential"),
    "named": lambda group: of.distributed.diloco(of.sgd(0.05), group, 4, fragments=2, split=lambda path: path in "ac"),
    "delay": lambda group: of.distributed.diloco(of.adamw(0.05), group, 8, fragments=2, delay=2),
    "late and mixed": lambda group: of.distributed.diloco(of.adamw(0.05), group, 4, fragments=2, delay=1, alpha=0.5),
    "mean later": lambda group: of.distributed.outer_sync(of.sgd(0.1), None, group, 4, delay=1, alpha=0.25),
    "slowmo": lambda group: of.distributed.slowmo(of.sgd(0.1), group, 4, beta=0.6, slow_lr=0.9),
    "warmup": lambda group: of.distributed.diloco(of.adamw(0.05), group, 4, warmup=3),
    "top-k": lambda group: of.distributed.diloco(
        of.sgd(0.05), group, 4, fragments=2, delay=1, compress=of.distributed.topk(0.25)
    ),
}
STEPS = 17
EVERY = {"delay": 8, "sequential": 6}  # else 4


def train(tx, params, state, replica, steps, equal=None):
    """Take steps; notes after which of them the replicas are equal."""
    for step in steps:
        updates, state = tx.update(gradient(params, replica, step), state, params)
        params = of.apply_updates(params, updates)
        if equal is not None:
            equal.append(is_equal(params))
    return params, state


def is_equal(params, size=None):
    """Whether all ranks of the first ones have the same bits."""
    flat = torch.cat([p.detach().reshape(-1).float() for p in params.values()])
    group = mesh_of(size or SIZE[0]).get_group()
    others = [torch.empty_like(flat) for _ in range(dist.get_world_size(group))]
    dist.all_gather(others, flat, group=group)
    return all(torch.equal(flat, other) for other in others)


SIZE = [2]


def run(name, size, dtype=torch.float32):
    """The parameters at the end, and after which steps the replicas were equal."""
    if dist.get_rank() >= size:
        return None
    SIZE[0] = size
    tx, params, equal = RULES[name](mesh_of(size)), start(dtype), []
    params, state = train(tx, params, tx.init(params), dist.get_rank(), range(STEPS), equal)
    return params, equal, {"anchor": state.anchor, "count": int(state.count)}


def simulated(size, inner, outer, every, fragments=1, part=None, delay=0, alpha=0.0, warmup=0, ratio=None):
    """What `outer_sync` is to do, with all replicas in one process. The outer rule is a function of its own."""
    everyone = [start() for _ in range(size)]
    states = [inner.init(params) for params in everyone]
    anchor, memory, sent, kept = start(), {}, {}, {}
    per = every // fragments

    def mean(values):
        return torch.stack(values).sum(0) / size

    def largest(r, name, d):
        """The largest elements of a difference and what was kept of those before; the rest is kept."""
        whole = d + kept.get((r, name), 0.0)
        end = whole.abs().flatten().sort(descending=True)[0][math.ceil(ratio * whole.numel()) - 1]
        kept[r, name] = torch.where(whole.abs() < end, whole, 0.0)
        return whole - kept[r, name]

    for step in range(STEPS):
        for r, params in enumerate(everyone):
            updates, states[r] = inner.update(gradient(params, r, step), states[r], params)
            everyone[r] = of.apply_updates(params, updates)
        now = step + 1 - warmup
        if now == 0:
            anchor = {name: mean([params[name] for params in everyone]) for name in SHAPES}
            everyone = [dict(anchor) for _ in everyone]
        if now <= 0:
            continue
        for name in SHAPES:
            turn = per * (part(name) if part else 0)
            # This leaf meets after the steps at which `now` is turn + per, and every `every` from there on.
            since = (now - turn - per) % every
            if now >= turn + per - delay and (since + delay) % every == 0:
                sent[name] = [p[name] if outer is None else anchor[name] - p[name] for p in everyone]
                if ratio is not None:
                    sent[name] = [largest(r, name, d) for r, d in enumerate(sent[name])]
            if now >= turn + per and since == 0:
                if outer is None:
                    new = mean(sent[name])
                else:
                    new = anchor[name] = anchor[name] + outer(mean(sent[name]), memory, name)
                for params in everyone:
                    params[name] = torch.lerp(new, params[name], alpha) if alpha else new
    return everyone


OUTER = of.sgd(0.7, momentum=0.9, nesterov=True)


def nesterov(d, memory, name):
    update, memory[name] = OUTER.update(d, memory.get(name) or OUTER.init(d))
    return update


def slow(d, memory, name):
    memory[name] = 0.6 * memory.get(name, 0.0) + d / 0.1
    return -0.9 * 0.1 * memory[name]


IN_TURN = dict(zip(SHAPES, range(4), strict=True))
SIMULATED = {
    "local sgd": {"inner": of.sgd(0.1, momentum=0.9), "outer": None, "every": 4},
    "diloco": {"inner": of.adamw(0.05), "outer": nesterov, "every": 4},
    "fragments": {
        "inner": of.adamw(0.05),
        "outer": nesterov,
        "every": 4,
        "fragments": 2,
        "part": lambda name: IN_TURN[name] % 2,
    },
    # Sizes 15, 6, 24, 1: the middles are at 7.5, 18, 33 and 45.5 of 46, in thirds of 15.3.
    "sequential": {
        "inner": of.adamw(0.05),
        "outer": nesterov,
        "every": 6,
        "fragments": 3,
        "part": {"a": 0, "b": 1, "c": 2, "d": 2}.__getitem__,
    },
    "named": {
        "inner": of.sgd(0.05),
        "outer": nesterov,
        "every": 4,
        "fragments": 2,
        "part": lambda name: int(name in "ac"),
    },
    "delay": {
        "inner": of.adamw(0.05),
        "outer": nesterov,
        "every": 8,
        "fragments": 2,
        "delay": 2,
        "part": lambda name: IN_TURN[name] % 2,
    },
    "late and mixed": {
        "inner": of.adamw(0.05),
        "outer": nesterov,
        "every": 4,
        "fragments": 2,
        "delay": 1,
        "alpha": 0.5,
        "part": lambda n: IN_TURN[n] % 2,
    },
    "mean later": {"inner": of.sgd(0.1), "outer": None, "every": 4, "delay": 1, "alpha": 0.25},
    "slowmo": {"inner": of.sgd(0.1), "outer": slow, "every": 4},
    "warmup": {"inner": of.adamw(0.05), "outer": nesterov, "every": 4, "warmup": 3},
    "top-k": {
        "inner": of.sgd(0.05),  # of Adam's first steps many are as long, to the last bit
        "outer": nesterov,
        "every": 4,
        "fragments": 2,
        "delay": 1,
        "part": lambda name: IN_TURN[name] % 2,
        "ratio": 0.25,
    },
}


# Checkpoints


def cut_off(name, folder, at, size):
    """Train, and save in between, when the replicas differ."""
    if dist.get_rank() >= size:
        return
    mesh = mesh_of(size)
    tx, params = RULES[name](mesh), start()
    params, state = train(tx, params, tx.init(params), dist.get_rank(), range(at))
    of.distributed.save(folder, params, state, tx, group=mesh.get_group())
    with pytest.raises(ValueError, match="a state of its own"):
        of.distributed.TrainState(params, state).state_dict()


def go_on(name, folder, at, size, donate=False):
    """Read that, and go on."""
    if dist.get_rank() >= size:
        return None
    mesh = mesh_of(size)
    tx = RULES[name](mesh)
    params = of.tree.zeros_like(start())
    here = params, tx.init(params)
    _flight._board.departures.clear()  # as in another process
    read = of.distributed.load(folder, *here, tx, donate=donate, group=mesh.get_group())
    if donate:
        assert all(a is b for a, b in zip(of.tree.leaves(read), of.tree.leaves(here), strict=True))
    return train(tx, *read, dist.get_rank(), range(at, STEPS))[0], read


# Behind an optimizer


def model():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def batch(replica, step):
    generator = torch.Generator().manual_seed(100 * replica + step)
    return torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator)


def loop(net, opt, replica, steps):
    """An ordinary loop."""
    for step in steps:
        x, y = batch(replica, step)
        opt.zero_grad()
        torch.nn.functional.mse_loss(net(x), y).backward()
        opt.step()


def make(net, group, **more):
    return of.Optimizer(net, of.distributed.diloco(of.adamw(0.05), group, every=4, fragments=2, delay=1, **more))


def behind_optimizer(size, steps, folder=None, fresh=False, save_at=None):
    """Train; from a folder if it is not fresh."""
    if dist.get_rank() >= size:
        return None
    group, net = mesh_of(size).get_group(), model()
    opt = make(net, group)
    if not fresh:
        found = of.distributed.load_replicas(folder, group=group)
        net.load_state_dict(found["model"])
        opt.load_state_dict(found["optimizer"])
    loop(net, opt, dist.get_rank(), steps)
    if save_at:
        of.distributed.save_replicas(save_at, {"model": net.state_dict(), "optimizer": opt.state_dict()}, group=group)
    return {name: p.detach() for name, p in net.named_parameters()}, opt.param_groups[0]["lr"]


# Beside torch


def beside_torch(name):
    """Parameters after some steps: ours, and those of torch's averagers."""
    from torch.distributed.optim import PostLocalSGDOptimizer  # which warns of torch itself

    rank, square = dist.get_rank(), MESHES["square"]
    ours, theirs = model(), model()
    params = list(theirs.parameters())
    opt = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    inner, world = of.sgd(0.1, momentum=0.9), MESHES["four"].get_group()
    hook = None
    if name == "periodic":
        tx = of.distributed.local_sgd(inner, world, 3, warmup=2)
        averager = averagers.PeriodicModelAverager(3, 4, process_group=world)
    elif name == "hierarchical":
        tx = of.distributed.hierarchical_sgd(inner, [(2, (square, "shard")), (4, square_world())], warmup=5)
        averager = hierarchical.HierarchicalModelAverager(OrderedDict([(2, 2), (4, 4)]), warmup_steps=5)
    else:
        tx = of.distributed.post_local_sgd(inner, world, (square, "shard"), start=3, every=2)
        averager = averagers.PeriodicModelAverager(2, 4, process_group=world)
        hook = world, square.get_group("shard")
    post = PostLocalSGDOptimizer(opt, averager)
    mine = of.Optimizer(ours, tx)
    for step in range(11):
        loop(ours, mine, rank, [step])
        x, y = batch(rank, step)
        post.zero_grad()
        torch.nn.functional.mse_loss(theirs(x), y).backward()
        if hook:
            for p in params:
                group = hook[step >= 3]
                dist.all_reduce(p.grad, group=group)
                p.grad /= dist.get_world_size(group)
        post.step()
    return [p.detach() for p in ours.parameters()], [p.detach() for p in params]


def square_world():
    return MESHES["four"]


# What goes wrong, and what is sent


def lose_one():
    """In one of the meetings the collective fails."""
    if dist.get_rank() > 1:
        return None
    net, real, broken = model(), _comm.collective, [True]
    opt = make(net, mesh_of(2).get_group())

    def failing(name, *args):
        if name == "all_reduce":
            if broken and len(asked) == 2:
                broken.clear()
                raise RuntimeError("a peer has closed the connection")
            asked.append(None)
        return real(name, *args)

    asked, found = [], None
    _comm.collective = failing
    try:
        for step in range(12):
            before = frozen(net, opt)
            try:
                loop(net, opt, dist.get_rank(), [step])
            except RuntimeError:
                found = before, frozen(net, opt)
                opt.step()  # in which they meet
    finally:
        _comm.collective = real
    return *found, net.state_dict()["2.weight"]


def frozen(net, opt):
    return {**{k: v.clone() for k, v in net.state_dict().items()}, "state": opt.state_dict()["state"]}


def count_calls():
    """After which steps something is sent, and how many bytes."""
    if dist.get_rank() > 1:
        return None
    found = {}
    for name in ("local sgd", "diloco", "fragments"):
        tx, params = RULES[name](mesh_of(2)), start()
        state, calls = tx.init(params), []
        for step in range(4):
            real = _comm.collective

            def counting(name, x, *args, step=step, real=real, calls=calls):
                calls.append((step + 1, x.nbytes))
                return real(name, x, *args)

            _comm.collective = counting
            try:
                params, state = train(tx, params, state, dist.get_rank(), [step])
            finally:
                _comm.collective = real
        found[name] = calls
    return found


class Quorum:
    """A group whose members change, as those of a manager do."""

    ndim = 1

    def __init__(self, now):
        self.now = now

    def get_group(self, axis=None):
        return self.now


def lose_half():
    """Whether the replicas are equal after a meeting of all, and after one of the two that are left."""
    group = Quorum(MESHES["four"].get_group())
    tx, params, equal = of.distributed.diloco(of.adamw(0.05), group, 3), start(), []
    params, state = train(tx, params, tx.init(params), dist.get_rank(), range(3))
    equal.append(is_equal(params, 4))
    if dist.get_rank() > 1:
        return None
    group.now = MESHES["two"].get_group()
    params, state = train(tx, params, state, dist.get_rank(), range(3, 6))
    return (*equal, is_equal(params, 2))
