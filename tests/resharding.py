"""Jobs of several processes that save, and go on elsewhere; see `ranks`."""

import os
import signal
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from shards import LAYOUTS, MESHES, SHAPES, drawn, gradients, problems, sharded, whole, works_on
from torch import nn
from torch.distributed.checkpoint import state_dict as dsd
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

import optimfn as of

RULES = {
    "adamw": lambda: of.chain(
        of.clip_by_global_norm(1.0), of.adamw(of.linear_schedule(0.1, 0.0, 20)), of.params_ema(0.9)
    ),
    "adafactor": lambda: of.chain(of.scale_by_factored_rms(min_dim_size_to_factor=1), of.scale(-0.1)),
    "sm3": lambda: of.sm3(0.1, momentum=0.9),
    "lookahead": lambda: of.lookahead(of.adam(0.1), 3, 0.5, slow_in_state=True),
    "accumulated": lambda: of.apply_if_finite(of.multi_steps(of.lamb(0.1), 2), 3),
    "partition": lambda: of.partition(
        {"m": of.lion(0.1), "v": of.rprop(0.1)}, of.tree.label_by(lambda p: "vm"[p.ndim > 1])
    ),
    "per leaf": lambda: of.chain(of.per_leaf(of.adam(0.1)), of.inject_hyperparams(of.scale)(0.5)),
    "companded": lambda: of.quantize_state(of.adam(0.1), block_size=4, min_size=1),
    "4bit": lambda: of.quantize_state(of.adam(0.1), "4bit", block_size=6, min_size=7),
}
IN_CODES = {"companded", "4bit"}  # of which a number between two codes falls to either, as sums are rounded
EVERY = 2  # steps between checkpoints


def group_of(layout):
    """The processes of a layout."""
    mesh = MESHES[LAYOUTS[layout][0]]
    return mesh.get_group() if mesh.ndim == 1 else None


def start(dtype):
    return {name: x for name, x in drawn(SHAPES, dtype, 1).items() if name != "d"}


def steps(dtype, number):
    return gradients({name: SHAPES[name] for name in "abc"}, dtype, 10)[:number]


def uninterrupted(rule, dtype, number):
    """The parameters and the state of one process, at the end."""
    tx, params = RULES[rule](), start(dtype)
    state = tx.init(params)
    for grads in steps(dtype, number):
        updates, state = tx.update(grads, state, params)
        params = of.apply_updates(params, updates)
    return params, state


def go_on(rule, dtype, first, last, layout, old, new):
    """Read a checkpoint, if there is one, take some steps, and write another."""
    if layout is not None and not works_on(layout):
        return None
    laid = (lambda tree: tree) if layout is None else lambda tree: sharded(layout, tree)
    group = None if layout is None else group_of(layout)
    tx, params = RULES[rule](), laid(start(dtype))
    state = tx.init(params)
    if old is not None:
        empty = of.tree.zeros_like(params)
        params, state = of.distributed.load(old, empty, tx.init(empty), tx, group=group)
    for grads in steps(dtype, last)[first:]:
        updates, state = tx.update(laid(grads), state, params)
        params = of.apply_updates(params, updates)
    if new is not None:
        of.distributed.save(new, params, state, tx, group=group)
    return whole((params, state))


def rules_of(dtype):
    """The rules whose state is the same whatever is summed first, to the precision of a dtype."""
    return [rule for rule in RULES if dtype == torch.float64 or rule not in IN_CODES]


def all_rules(dtype, first, last, layout, old, new):
    """The same for every rule, each in a folder of its own."""
    here = {}
    for rule in rules_of(dtype):
        folders = [None if one is None else str(Path(one) / rule) for one in (old, new)]
        here[rule] = go_on(rule, dtype, first, last, layout, *folders)
    return here


def die(rule, dtype, layout, folder, at):
    """Train, with checkpoints; one process is killed between two of them."""
    if not works_on(layout):
        return
    tx, params = RULES[rule](), sharded(layout, start(dtype))
    state = tx.init(params)
    for number, grads in enumerate(steps(dtype, 2 * at)):
        if number == at and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        updates, state = tx.update(sharded(layout, grads), state, params)
        params = of.apply_updates(params, updates)
        if (number + 1) % EVERY == 0:
            of.distributed.save(f"{folder}/{number + 1}", params, state, tx, group=group_of(layout))


# Leaves that are each replica's own


def own_errors(elastic):
    """A transformation whose state says what its leaf is."""

    class Own(NamedTuple):
        error: Annotated[Any, of.LeafSpec("per_replica", elastic=elastic)]

    return of.GradientTransformation(lambda params: Own(params), lambda u, s, p=None, **extra: (u, s)), Own


def replicas(elastic, size, folder, first):
    """Save a leaf of which each of some replicas has a row, or read it with another number of them."""
    mesh = MESHES["two" if size == 2 else "four"]
    if dist.get_rank() not in mesh.mesh:
        return None
    tx, kind = own_errors(elastic)
    values = torch.arange(3.0 * size).reshape(size, 3) if first else torch.full((size, 3), -1.0)
    leaf = distribute_tensor(values, mesh, [Shard(0)], src_data_rank=None)
    params, state = {"w": torch.ones(3)}, kind({"w": leaf})
    if first:
        of.distributed.save(folder, params, state, tx, group=mesh.get_group())
        return None
    try:
        _, state = of.distributed.load(folder, params, state, tx, group=mesh.get_group())
    except ValueError as error:
        return str(error)
    assert state.error["w"].placements == (Shard(0),)
    return state.error["w"].full_tensor()


def parts(folder):
    """What is said of a leaf that is a sum in parts."""
    leaf = DTensor.from_local(torch.ones(2), MESHES["four"], [Partial()], run_check=False)
    try:
        of.distributed.save(folder, {"w": leaf}, (), of.identity())
    except ValueError as error:
        return str(error)
    return "nothing"


# Behind an optimizer


OPTIMIZERS = {
    "adamw": lambda net: of.Optimizer(net, of.adamw, learning_rate=0.05, weight_decay=0.1),
    "schedule": lambda net: of.Optimizer(
        net, of.chain(of.clip_by_global_norm(0.5), of.adamw(of.linear_schedule(0.1, 0.0, 20)))
    ),
    "lookahead": lambda net: of.Optimizer(net, of.lookahead(of.adam(0.05), 2, 0.5)),
    "dropin": lambda net: of.optim.AdamW(net.parameters(), lr=0.05),
}
OPTIONS = {
    "plain": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
}


def net_on(layout, dtype):
    """A small network, in the shards of a layout."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
    if layout is not None:
        fully_shard(net, mesh=MESHES[LAYOUTS[layout][0]])
    return net


def train(net, optimizer, first, last):
    for step in range(first, last):
        optimizer.zero_grad()
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step)).to(next(net.parameters()).dtype)
        (net(x).float() ** 2).mean().backward()
        optimizer.step()


def train_on(kind, mode, dtype, first, last, layout, old, new):
    """The parameters, and the dtypes of the state, after some steps behind an optimizer."""
    if layout is not None and not works_on(layout):
        return None
    net = net_on(layout, dtype)
    optimizer = OPTIMIZERS[kind](net)
    options = dsd.StateDictOptions(**OPTIONS[mode])
    group, alone = (None, True) if layout is None else (group_of(layout), False)
    if old is not None:
        model, state = dsd.get_state_dict(net, optimizer, options=options)
        saved = {"model": model, "optimizer": state}
        dcp.load(saved, checkpoint_id=old, process_group=group, no_dist=alone)
        dsd.set_state_dict(
            net, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"], options=options
        )
    train(net, optimizer, first, last)
    if new is not None:
        model, state = dsd.get_state_dict(net, optimizer, options=options)
        dcp.save({"model": model, "optimizer": state}, checkpoint_id=new, process_group=group, no_dist=alone)
    kinds = {key: x.dtype for entries in optimizer.state.values() for key, x in entries.items()}
    return whole({name: p.detach() for name, p in net.named_parameters()}), kinds


def saved_meanwhile(folder):
    """Save while a step that donates writes into what is being saved, and read it: what is wrong with what was read."""
    tx, params = RULES["adamw"](), sharded("fsdp on 4", start(torch.float64))
    state = tx.init(params)
    grads = sharded("fsdp on 4", steps(torch.float64, 1)[0])
    step = of.make_step(tx, donate=True)
    step(params, state, grads)
    want = of.tree.map(torch.clone, (params, state))
    # Its thread talks to the other processes: in a group of its own, else its words and those of steps get mixed up.
    apart = dist.new_group(backend="gloo")
    train = {"train": of.distributed.TrainState(params, state)}
    saving = dcp.async_save(train, checkpoint_id=folder, process_group=apart)
    step(params, state, grads)
    saving.result()
    empty = sharded("hsdp 2 x 2", start(torch.float64))
    read = of.distributed.TrainState(of.tree.zeros_like(empty), tx.init(empty))
    dcp.load({"train": read}, checkpoint_id=folder)
    return problems((read.params, read.state), whole(want), 0.0)


FORMATS = {
    "full": lambda: of.adam(0.1),
    "companded": lambda: of.quantize_state(of.adam(0.1), block_size=4, min_size=7),
    "4bit": lambda: of.quantize_state(of.adam(0.1), "4bit", block_size=6, min_size=1),
    "fp8": lambda: of.quantize_state(of.adam(0.1), "fp8", block_size=5, min_size=1),
    "bfloat16": lambda: of.quantize_state(of.adam(0.1), "bfloat16", min_size=1),
}


def in_every_format(layout, folder, first):
    """Save a state in every format, or read each in full and in the next: what is wrong with them."""
    names = list(FORMATS)
    following = dict(zip(names, [*names[1:], names[0]], strict=True))
    if layout is not None and not works_on(layout):
        return {}
    laid = (lambda tree: tree) if layout is None else lambda tree: sharded(layout, tree)
    group, dtype, found = None if layout is None else group_of(layout), torch.float64, {}
    grads = steps(dtype, 1)[0]
    single = {name: make().update(grads, make().init(start(dtype)))[1] for name, make in FORMATS.items()}
    for old, make in FORMATS.items():
        params = laid(start(dtype))
        if first:
            _, state = make().update(laid(grads), make().init(params))
            of.distributed.save(f"{folder}/{old}", params, state, make(), group=group)
            continue
        for new in ["full", following[old]]:
            other, donate = FORMATS[new], new != "full"
            want = of.load_state_dict(other().init(start(dtype)), of.state_dict(single[old]))
            own = of.tree.zeros_like(params), other().init(params)
            _, got = of.distributed.load(f"{folder}/{old}", *own, other(), donate=donate, group=group)
            wrong = problems(got, want, 1e-12)
            wrong += [] if not donate or of.tree.leaves(got)[1] is of.tree.leaves(own[1])[1] else ["it is another"]
            if wrong:
                found[f"{old} as {new}"] = wrong
    return found
