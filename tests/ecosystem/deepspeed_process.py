"""Run by test_deepspeed.py in a process of its own, as DeepSpeed settles in for its life: trains at a ZeRO stage, whole
and with a break, and writes what was used and what came out to FILE."""

import sys
from pathlib import Path

import deepspeed
import torch
from frameworks import LOSS, LR, Witness, small_loader, small_model
from processes import leave
from readme import run_snippet

from cyclic_optim import CyclicSGD, OneCycle

POLICY = OneCycle(total_steps=4)
CONFIG = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 2,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


def train(stage, batches, checkpoint=None):
    model = small_model()
    optimizer = CyclicSGD(model.parameters(), lr=LR, momentum=0.9, policy=POLICY)
    witness = Witness(optimizer)
    after = run_snippet(
        __file__,
        deepspeed=deepspeed,
        model=model,
        optimizer=optimizer,
        loader=batches,
        loss_fn=LOSS,
        config={**CONFIG, "zero_optimization": {"stage": stage}},
        checkpoint=checkpoint,
    )
    params = [param.detach().clone() for param in model.parameters()]
    return after["engine"], {"used": witness.used, "params": params}


def main(file, stage):
    # One process communicates with nobody; compiling DeepSpeed's shared-memory kernels takes a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    batches, folder = list(small_loader()), str(Path(file).parent / "checkpoint")
    _, whole = train(int(stage), batches)
    engine, _ = train(int(stage), batches[:4])
    engine.save_checkpoint(folder)
    _, resumed = train(int(stage), batches[4:], checkpoint=folder)
    torch.save({"whole": whole, "resumed": resumed}, file)
    leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
