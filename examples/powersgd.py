"""Train the GPT of gpt.py on replicas, with less than its gradients on the wire.

    torchrun --nproc-per-node 2 examples/powersgd.py --steps 60

Each process has the whole model and some rows of every batch. The same steps are taken with the mean of the gradients,
with PowerSGD of rank 4 and with one bit for each number; both add what they did not send to the next gradient.
"""

import argparse

import torch
import torch.distributed as dist
from gpt import BATCH, CONTEXT, GPT, load_text
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy

import optimfn as of

RULES = {
    "all_reduce_mean": of.distributed.all_reduce_mean,
    "powersgd(4)": lambda group: of.distributed.compressed_mean(group, of.distributed.powersgd(4)),
    "sign_1bit()": lambda group: of.distributed.compressed_mean(group, of.distributed.sign_1bit()),
}


def train(mean, mesh, text, steps):
    """The mean loss of the last batches, the bytes that a process sends in a step, and the parameters."""
    torch.manual_seed(0)  # every replica starts with the same parameters
    model, losses = GPT(), []
    optimizer = of.Optimizer(model, of.chain(mean(mesh), of.clip_by_global_norm(1.0), of.adamw(3e-3, b2=0.95)))
    for step in range(steps):
        # The batch depends on the step alone; each process takes some of its rows.
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=torch.Generator().manual_seed(step))
        rows = text[starts + torch.arange(CONTEXT + 1)].chunk(mesh.size())[mesh.get_local_rank()]
        optimizer.zero_grad()
        loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        with of.distributed.comm_trace() as sent:
            optimizer.step()
        losses.append(loss.detach())
    last = torch.stack(losses[-10:]).mean()
    dist.all_reduce(last, group=mesh.get_group())
    return last.item() / mesh.size(), sent.bytes, [p.detach() for p in model.parameters()]


def main(mesh, steps):
    text, found = load_text()[0], {}
    if mesh.get_local_rank() == 0:
        print(f"{mesh.size()} processes, {steps} steps     loss  kB a step")
    for name, mean in RULES.items():
        found[name] = loss, sent, _ = train(mean, mesh, text, steps)
        if mesh.get_local_rank() == 0:
            print(f"{name:24}{loss:9.4f}{sent / 1e3:11.1f}", flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    dist.init_process_group("gloo")
    main(init_device_mesh("cpu", (dist.get_world_size(),)), **vars(parser.parse_args()))
    dist.destroy_process_group()
