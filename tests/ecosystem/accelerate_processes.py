"""Run by test_accelerate.py in several processes: trains, and writes what each saw to FOLDER/RANK.pt."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from frameworks import LOSS, LR, Witness, small_loader, small_model
from processes import leave

from cyclic_optim import CyclicSGD, OneCycle


def main(folder: str, split_batches: str) -> None:
    loading = DataLoaderConfiguration(split_batches=split_batches == "split")
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, dataloader_config=loading)
    model, loader = small_model(), small_loader()
    updates = len(loader) // 2 if loading.split_batches else len(loader) // 4
    optimizer = CyclicSGD(model.parameters(), lr=LR, momentum=0.9, policy=OneCycle(total_steps=8))
    witness, inner = Witness(optimizer), optimizer
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, optimizer.passive_scheduler())
    for inputs, classes in loader:
        with accelerator.accumulate(model):
            accelerator.backward(LOSS(model(inputs), classes))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    told = {"used": witness.used, "updates": updates, "last_lr": scheduler.get_last_lr()}
    told |= {"processes": accelerator.num_processes, "lr": [group["lr"] for group in inner.param_groups]}
    told |= {"params": [param.detach() for param in model.parameters()]}
    torch.save(told, Path(folder) / f"{accelerator.process_index}.pt")
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
