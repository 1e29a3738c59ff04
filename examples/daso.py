"""Train the GPT of gpt.py with DASO on two nodes of two processes, here all on one machine.

    torchrun --nproc-per-node 4 examples/daso.py --epochs 8

Inside a node the gradients are averaged in every batch. The nodes exchange parameters, at first and at last after every
batch, in between every few batches and without waiting for each other.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
from gpt import BATCH, CONTEXT, GPT, load_text
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy

import optimfn as of


def main(mesh, epochs, folder, every=20):
    """The mean loss of each epoch, and the bytes that this process sends; an epoch has `every` batches."""
    torch.manual_seed(0)  # all begin with the same parameters
    model, text, rank = GPT(), load_text()[0].chunk(4)[dist.get_rank()], dist.get_rank()
    optimizer = of.optim.DASO(
        of.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95)),
        total_epochs=epochs,
        comm=mesh,
        warmup_epochs=max(1, epochs // 4),
        cooldown_epochs=max(1, epochs // 4),
    )
    optimizer.last_batch, results = every - 1, []
    generator = torch.Generator().manual_seed(rank)
    for epoch in range(epochs):
        total, sent = torch.zeros(()), 0
        for _ in range(every):
            starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
            rows = text[starts + torch.arange(CONTEXT + 1)]
            optimizer.zero_grad()
            loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            loss.backward()
            with of.distributed.comm_trace() as traffic:
                optimizer.step()
            total += loss.detach() / every
            sent += traffic.bytes
        skips = optimizer.global_skip, optimizer.batches_to_wait
        optimizer.epoch_loss_logic(total)
        dist.all_reduce(total)
        results.append((total.item() / 4, skips, sent / every))
        if rank == 0:
            print(f"{epoch:5}{total.item() / 4:9.3f}{skips[0]:6}{skips[1]:6}{sent / every / 1e3:9.0f}", flush=True)
    if folder:  # each process has a state of its own
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        of.distributed.save_replicas(Path(folder) / "daso", saved)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--folder", default="outputs")
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        print("epoch     loss skips  wait  kB a batch")
    main(init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "local")), **vars(parser.parse_args()))
    dist.destroy_process_group()
