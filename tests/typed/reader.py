"""What the readers of README.md and docs/ have: the names that a block uses and does not define.

The frameworks are ``Any``, installed or not. What counts is how this package's types go with the rest of a block.
"""

import functools as functools
from collections.abc import Callable
from typing import Any

import torch as torch
from torch import Tensor
from torch.func import functional_call as functional_call
from torch.nn import CrossEntropyLoss as CrossEntropyLoss
from torch.nn.parallel import DistributedDataParallel as DistributedDataParallel
from torch.optim.swa_utils import AveragedModel as AveragedModel
from torch.utils.data import DataLoader as DataLoader
from torch.utils.data import Dataset
from torch.utils.data import DistributedSampler as DistributedSampler
from torch.utils.tensorboard.writer import SummaryWriter as SummaryWriter

from cyclic_optim import CosineDecay as CosineDecay
from cyclic_optim import CosineRestarts as CosineRestarts
from cyclic_optim import CyclicAdamW as CyclicAdamW
from cyclic_optim import CyclicSGD as CyclicSGD
from cyclic_optim import OneCycle as OneCycle
from cyclic_optim import Policy
from cyclic_optim import Triangular as Triangular
from cyclic_optim import cyclic as cyclic
from cyclic_optim import lr_range_test as lr_range_test
from cyclic_optim import supervised_step as supervised_step

Batch = tuple[Tensor, Tensor]

# Training.
model: torch.nn.Sequential
loader: DataLoader[Batch]
loss_fn: CrossEntropyLoss
optimizer: CyclicSGD
policy: Policy
data: Dataset[Batch]
device: str
dtype: torch.dtype
inputs: Tensor
classes: Tensor
epochs: int
total_steps: int
folder: str

# A loop that saves, and goes on from what it finds.
batch: Callable[[int], Batch]
path: str
save_every: int
total_batches: int

# A GAN.
generator: torch.nn.Module
discriminator: torch.nn.Module
generator_loss: Callable[[int], Tensor]
discriminator_loss: Callable[[Tensor], Tensor]
some_noise: Tensor
some_data: Tensor

# A stream.
example: Callable[[torch.Generator], Batch]

# Of an earlier block.
load: Callable[..., None]

# The frameworks, and what they are given.
Accelerator: Any
Checkpoint: Any
DiskSaver: Any
Events: Any
LRFinder: Any
LearningRateMonitor: Any
ModelCheckpoint: Any
Net: Any
NeuralNetClassifier: Any
Trainer: Any
accelerator: Any
args: Any
checkpoint: Any
config: Any
create_supervised_trainer: Any
deepspeed: Any
lightning: Any
options: Any
