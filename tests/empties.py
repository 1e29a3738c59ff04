"""Jobs about trees without leaves, and leaves without elements, in every rule of several processes; see `ranks`."""

import warnings

import torch
from shards import MESHES, attempt
from test_distributed_laws import INNER

import optimfn as of

od = of.distributed


def rules(group):
    """Every rule of several processes, and what is made of it."""
    found = {
        "all_reduce_mean": od.all_reduce_mean(group),
        "deferred": od.deferred(of.chain(od.all_reduce_mean(group), INNER)),
        "outer_sync": od.outer_sync(INNER, of.sgd(0.7), group, every=2, delay=1),
        "fragments": od.outer_sync(INNER, of.sgd(0.7), group, every=2, fragments=2),
        "local_sgd": od.local_sgd(INNER, group, every=2),
        "post_local": od.post_local_sgd(INNER, group, group, 1, every=2),
        "hierarchical": od.hierarchical_sgd(INNER, ((2, group), (4, group))),
        "slowmo": od.slowmo(INNER, group, every=2),
        "zero": od.zero(INNER, group),
        "zero_flat": od.zero(INNER, group, layout="flat"),
    }
    for name, less in {
        "cast": od.cast(torch.bfloat16),
        "powersgd": od.powersgd(1, min_rate=1.0),
        "sign_1bit": od.sign_1bit(),
        "int8_block": od.int8_block(4),
        "topk": od.topk(0.5),
    }.items():
        found[name] = of.chain(od.compressed_mean(group, less), INNER)
        found[f"diloco, {name}"] = od.diloco(INNER, group, every=2, compress=less)
    return found


def steps(tx, params):
    """Nothing, after some steps, behind the pure pair and in place."""
    state = tx.init(params)
    step, own, donated = of.make_step(tx, donate=True), of.tree.map(torch.clone, params), tx.init(params)
    for _ in range(5):
        updates, state = tx.update(params, state, params)
        of.apply_updates(params, updates)
        own, donated = step(own, donated, params)
    of.distributed.flush(state)
    if hasattr(tx, "end_epoch"):
        tx.end_epoch(state, 1.0)
    return []


def trees(alone):
    """What goes wrong: the problems by rule and tree."""
    found = {}
    named = rules(None if alone else MESHES["four"])
    if not alone:
        for exact in (True, False):
            named[f"daso {exact}"] = od.daso(INNER, MESHES["square"], 6, 2, warmup_epochs=1, exact=exact)
    for name, tx in named.items():
        for params in ({}, {"e": torch.zeros(0, 3)}, {"e": torch.zeros(0), "x": torch.ones(2)}):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "(?s).* runs eagerly")  # without leaves it is not seen why
                wrong = attempt(lambda tx=tx, params=params: steps(tx, params))
            if wrong:
                found[f"{name} { ({k: [*p.shape] for k, p in params.items()}) }"] = wrong
    return found
