"""Train the GPT of gpt.py in shards on several processes, and go on with another number of them.

    torchrun --nproc-per-node 2 examples/fsdp.py --steps 20
    torchrun --nproc-per-node 4 examples/fsdp.py --steps 40  # goes on where the first has stopped

FSDP2 cuts every parameter; Muon and AdamW step the shards as one process steps the whole. See scripts/demo-distributed.
"""

import argparse
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from gpt import BATCH, CONTEXT, GPT, load_text
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import optimfn as of


def main(mesh, steps, folder, every=10):
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # nothing is written to it
    torch.manual_seed(0)
    model, (text, _), group = GPT(), load_text(), mesh.get_group()
    for module in [*model.blocks, model]:
        fully_shard(module, mesh=mesh)
    rules = {"matrices": of.torch_muon(0.02, weight_decay=0.01), "rest": of.adamw(3e-3, b2=0.95, weight_decay=0.01)}
    labels = of.tree.label_by_path({r"^blocks\..*(qkv|out|up|down)\.weight$": "matrices"}, default="rest")
    optimizer = of.Optimizer(model, of.chain(of.clip_by_global_norm(1.0), of.partition(rules, labels)))
    first = max((int(file.parent.name) for file in Path(folder).glob("*/.metadata")), default=0)  # written last
    saved, losses = get_state_dict(model, optimizer), {}
    if first:
        dcp.load(dict(zip("mo", saved, strict=True)), checkpoint_id=f"{folder}/{first}", process_group=group)
        set_state_dict(model, optimizer, model_state_dict=saved[0], optim_state_dict=saved[1])
    for step in range(first + 1, steps + 1):
        # The batch depends on the step alone; each process takes some of its rows.
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=torch.Generator().manual_seed(step))
        rows = text[starts + torch.arange(CONTEXT + 1)].chunk(mesh.size())[mesh.get_local_rank()]
        optimizer.zero_grad()
        with of.distributed.comm_trace() as by_model:
            loss = cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            loss.backward()
        with of.distributed.comm_trace() as by_step:
            optimizer.step()
        if step % every == 0:
            dist.all_reduce(loss.detach(), group=group)
            losses[step] = loss.item() / mesh.size()
            sent = "".join(f"{one.calls:9}{one.bytes / 1e3:9.1f}" for one in (by_model, by_step))
            if mesh.get_local_rank() == 0:
                print(f"{mesh.size():9}{step:6}{losses[step]:9.4f}{sent}", flush=True)
    saved = dict(zip("mo", get_state_dict(model, optimizer), strict=True))
    dcp.save(saved, checkpoint_id=f"{folder}/{steps}", process_group=group)
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--folder", default="outputs/fsdp")
    dist.init_process_group("gloo")
    main(init_device_mesh("cpu", (dist.get_world_size(),)), **vars(parser.parse_args()))
    dist.destroy_process_group()
