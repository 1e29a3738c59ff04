"""Jobs of two nodes of two processes each; see `ranks`."""

import torch
import torch.distributed as dist
from oracles.daso import Cluster
from shards import MESHES
from torch.distributed.tensor import Shard, distribute_tensor

import optimfn as of
from optimfn.distributed import _flight

SHAPES = [(5, 3), (7,), (2, 2, 2)]


def start():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def gradient(rank, params, step):
    generator = torch.Generator().manual_seed(10000 * rank + step)
    return [p - torch.randn(p.shape, generator=generator) for p in params]


def loss_of(epoch):
    """Falls at first, and has plateaus."""
    return 1.0 / (1 + min(epoch, 8))


CONFIGS = {
    "all phases": ({}, 40, 19, torch.float32),
    "in bfloat16": ({}, 14, 11, torch.bfloat16),
    "long waits": ({"max_global_skips": 16, "local_skip_factor": 2}, 30, 23, torch.float32),
}


def make(name, exact=True, **more):
    given, epochs, batches, dtype = CONFIGS[name]
    return of.distributed.daso(
        of.sgd(0.05, momentum=0.9), MESHES["square"], epochs, batches, downcast_type=dtype, exact=exact, **given, **more
    )


def trace(name, exact=True, cut=None):
    """The parameters after each epoch, and the schedule after each batch; with a checkpoint in between."""
    _, epochs, batches, _ = CONFIGS[name]
    rank, tx, params = dist.get_rank(), make(name, exact), start()
    state, found, schedule, step = tx.init(params), [], [], 0
    for epoch in range(epochs):
        for _ in range(batches):
            updates, state = tx.update(gradient(rank, params, step), state, params)
            params = of.apply_updates(params, updates)
            phase = state.phase.tolist()
            schedule.append((*phase[:6], phase[-1]))
            step += 1
            if cut is not None and step == cut[1]:
                of.distributed.save(cut[0], params, state, tx)
                _flight._board.departures.clear()
                params, state = of.distributed.load(cut[0], start(), tx.init(start()), tx)
        found.append([p.clone() for p in params])
        # Each has a loss of its own; their mean is what counts.
        state = tx.end_epoch(state, loss_of(epoch) + (rank - 1.5) * 0.01)
    return found, schedule


def simulated(name):
    given, epochs, batches, dtype = CONFIGS[name]
    cluster = Cluster(
        start(),
        2,
        2,
        epochs,
        4,
        4,
        batches,
        dtype,
        given.get("max_global_skips", 8),
        2,
        given.get("local_skip_factor", 4),
    )
    found, schedule, step = [], [], 0
    for epoch in range(epochs):
        for _ in range(batches):
            cluster.batch(lambda key, x, step=step: gradient(2 * key[0] + key[1], x, step), 0.05, 0.9)
            schedule.append(cluster.schedule())
            step += 1
        found.append([[p.clone() for p in cluster.ranks[n, loc].x] for n in range(2) for loc in range(2)])
        cluster.end_epoch(loss_of(epoch), 0.05)
    return found, schedule


def by_class(name, exact=True, resume_at=None):
    """The same with the class, an optimizer of torch and, in the middle, a checkpoint."""
    given, epochs, batches, dtype = CONFIGS[name]
    rank, params = dist.get_rank(), [torch.nn.Parameter(p) for p in start()]
    frozen = torch.nn.Parameter(torch.tensor([1.0, 2.0]), requires_grad=False)

    def make_it():
        local = torch.optim.SGD([params[0], frozen, *params[1:]], lr=0.05, momentum=0.9)
        opt = of.optim.DASO(local, epochs, MESHES["square"], downcast_type=dtype, exact=exact, **given)
        opt.last_batch = batches - 1
        return opt

    opt, found, schedule, step = make_it(), [], [], 0
    for epoch in range(epochs):
        for _ in range(batches):
            opt.zero_grad()
            for p, g in zip(params, gradient(rank, [p.detach() for p in params], step), strict=True):
                p.grad = g
            opt.step()
            schedule.append((*opt._phase[:6], opt._phase[-1]))
            step += 1
            if step == resume_at:
                state = opt.state_dict()
                _flight._board.departures.clear()
                opt = make_it()
                opt.load_state_dict(state)
        found.append([p.detach().clone() for p in params])
        opt.epoch_loss_logic(loss_of(epoch) + (rank - 1.5) * 0.01)
    assert frozen.tolist() == [1.0, 2.0]
    return found, schedule


def complex_as_reals(exact):
    """The parameters after some epochs with a complex leaf, and with its parts as a real one."""
    rank, found = dist.get_rank(), []
    for view in (lambda x: x, torch.view_as_real):
        tx = make("in bfloat16", exact)

        def drawn(seed, view=view):
            generator = torch.Generator().manual_seed(seed)
            own = torch.randn(5, generator=generator), torch.randn(3, 3, generator=generator, dtype=torch.complex64)
            return [own[0], view(own[1])]

        params = drawn(0)
        state = tx.init(params)
        for step in range(9 * 11):
            updates, state = tx.update(drawn(1000 * rank + step), state, params)
            params = of.apply_updates(params, updates)
            if step % 11 == 10:
                state = tx.end_epoch(state, loss_of(step // 11))
        found.append(params)
    return found[0][0], torch.view_as_real(found[0][1]), *found[1]


def refused():
    """What is said to leaves in shards, by the rule and by the class."""
    x = distribute_tensor(torch.ones(4), MESHES["four"], [Shard(0)])
    said = []
    for attempt in (
        lambda: make("in bfloat16").init({"w": x}),
        lambda: of.optim.DASO(torch.optim.SGD([torch.nn.Parameter(x)]), 10, MESHES["square"]),
    ):
        try:
            attempt()
        except TypeError as error:
            said.append(str(error))
    return said


# Data parallel


def data_parallel(blocking, has_model):
    """The parameters of replicas that average gradients, and those of one process that sees all."""
    rank, nets = dist.get_rank(), []
    for everyone in (False, True):
        torch.manual_seed(2)
        net = torch.nn.Linear(3, 2)
        opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        if not everyone:
            opt = of.optim.DataParallelOptimizer(opt, blocking=blocking)
            if has_model:
                opt.set_model(net)
        for step in range(5):
            x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(step))
            if has_model:
                loss = net(x if everyone else x[rank]).pow(2).mean()
                opt.zero_grad()
            else:
                opt.zero_grad()
                loss = net(x if everyone else x[rank]).pow(2).mean()
            loss.backward()
            opt.step()
            if step == 2 and not everyone:
                opt.load_state_dict(opt.state_dict())
        if not everyone:
            opt.flush()
        nets.append([p.detach() for p in net.parameters()])
    return nets
