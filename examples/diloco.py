"""Train the GPT of gpt.py on several processes that hardly talk: DiLoCo beside the mean of every gradient.

    torchrun --nproc-per-node 2 examples/diloco.py --steps 300

Each process has its own part of the text. The run is saved in the end, and goes on from there on any number of
processes, as torchrun --max-restarts needs it.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from gpt import BATCH, CONTEXT, GPT, load_text
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy

import optimfn as of
from optimfn import distributed as od


def rules(group, every):
    """The streaming form meets in halves, one step late, in half the bytes."""
    inner = of.adamw(3e-3, b2=0.95, weight_decay=0.01)
    return {
        "every gradient": of.chain(od.all_reduce_mean(group), inner),
        "diloco": od.diloco(inner, group, every),
        "streaming": od.diloco(inner, group, every, fragments=2, delay=1, compress=torch.bfloat16),
    }


def batch(text, step, rank):
    starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=torch.Generator().manual_seed(step * 64 + rank))
    rows = text[starts + torch.arange(CONTEXT + 1)]
    return rows[:, :-1], rows[:, 1:].flatten()


def train(mesh, tx, steps, folder):
    """The loss on unseen text, averaged over the processes, and the bytes that this one has sent."""
    torch.manual_seed(0)  # all begin with the same parameters
    model, (text, unseen), group, rank = GPT(), load_text(), mesh.get_group(), mesh.get_local_rank()
    part, optimizer, sent = text.chunk(mesh.size())[rank], of.Optimizer(model, tx), 0
    first = max((int(file.parent.name) for file in folder.glob("*/.metadata")), default=0)  # written last
    if first:
        found = od.load_replicas(folder / str(first), group=group)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
    for step in range(first, steps):
        x, y = batch(part, step, rank)
        optimizer.zero_grad()
        cross_entropy(model(x).flatten(0, 1), y).backward()
        with od.comm_trace() as traffic:
            optimizer.step()
        sent += traffic.bytes
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    od.save_replicas(folder / str(steps), saved, group=group)
    with torch.no_grad():
        x, y = batch(unseen, 0, rank)
        loss = cross_entropy(model(x).flatten(0, 1), y)
    dist.all_reduce(loss, group=group)
    return loss.item() / mesh.size(), sent / (steps - first)


def main(mesh, steps, folder, every=50):
    results = {}
    for name, tx in rules(mesh, every).items():
        results[name] = loss, sent = train(mesh, tx, steps, Path(folder) / name)
        if mesh.get_local_rank() == 0:
            print(f"{name:15}loss {loss:.3f}, {sent / 1e3:7.1f} kB a step", flush=True)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", default="outputs/diloco")
    dist.init_process_group("gloo")
    main(init_device_mesh("cpu", (dist.get_world_size(),)), **vars(parser.parse_args()))
    dist.destroy_process_group()
