"""Processes that tests start: what is told of one that fails, and how members of a process group leave."""

import os
import subprocess
import sys
from pathlib import Path

import torch.distributed as dist
import torch.multiprocessing as mp

#: What takes seconds to import: a server process imports it once, and the processes that are forked from it have it.
#: Importing starts no threads, so that forking is safe.
PRELOADED = ["torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.optim", "cyclic_optim.sgd"]
PRELOADED += ["pytest", "hypothesis"]  # which the modules of tests import


def forks():
    """Where processes come from: ``Process`` and the rest of ``multiprocessing``, by way of that server."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_processes(work, *arguments, nprocs):
    """Call ``work(rank, *arguments)`` in so many processes and wait for all; an error of one is raised here."""
    forks()
    mp.start_processes(work, args=arguments, nprocs=nprocs, start_method="forkserver")


def run_script(script, *arguments, launcher=(), **variables):
    """Run a script beside the tests in a process of its own; what it printed is part of the message if it fails."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    try:
        subprocess.run(
            command, env=environment, check=True, timeout=120, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise AssertionError(f"{error}\n{(error.stdout or b'').decode(errors='replace')}") from None


def leave():
    """End this process, a member of a process group whose results are claimed and saved, once all members are here.

    Nothing is torn down: gloo's threads now and then abort a process that tears them down.
    """
    dist.barrier()
    os._exit(0)
