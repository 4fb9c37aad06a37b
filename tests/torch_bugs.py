"""What torch.optim.SGD does in each case of the table of bugs in docs/promises.md, on the torch that is installed.

``python tests/torch_bugs.py`` prints it; it needs torch alone.
"""

import subprocess
import sys
from unittest.mock import patch

import torch
from torch.autograd import forward_ad
from torch.optim import SGD

RIGHT = "right"


def stepped(params, grads, steps=1, fused=True, **options):
    """The optimizer after some steps, each with these gradients."""
    optimizer = SGD(params, lr=0.5, fused=fused, **options)
    for _ in range(steps):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
    return optimizer


def compared(values, grads, **options):
    """Whether the weights are those of torch's loop."""
    weights = []
    for fused in (True, False):
        params = [torch.nn.Parameter(value.clone(memory_format=torch.preserve_format)) for value in values]
        stepped(params, grads, fused=fused, foreach=False, **options)
        weights.append(params)
    return RIGHT if all(map(torch.allclose, *weights)) else "wrong weights"


def layouts():
    value = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return compared([value], [value.contiguous(memory_format=torch.channels_last)])


def a_late_gradient():
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = stepped(params, [torch.ones(2), None], momentum=0.9)
    params[1].grad = torch.ones(2)
    optimizer.step()
    return RIGHT


def a_first_step_that_overflows():
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = SGD([param], lr=0.5, momentum=0.9, fused=True)
    param.grad = torch.ones(4)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    # In place of memory that happens to be there.
    with patch.object(torch, "empty_like", lambda tensor, **options: torch.full_like(tensor, 7.0, **options)):
        optimizer.step()
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()
    return RIGHT if param.tolist() == [0.5] * 4 else "momentum starts from uninitialised memory"


def a_found_inf_of_2():
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = SGD([param], lr=0.5, fused=True)
    param.grad = torch.ones(4)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(2.0)
    optimizer.step()
    return RIGHT if param.tolist() == [1.0] * 4 else "step not skipped"


def half_precision():
    results = {
        compared([torch.zeros(numel, dtype=dtype)], [torch.ones(numel, dtype=dtype)])
        for dtype in (torch.float16, torch.bfloat16)
        for numel in (1, 15, 16, 33, 1000)
    }
    return RIGHT if results == {RIGHT} else "most elements never move"


def a_negated_gradient():
    return compared([torch.ones(20)], [torch._neg_view(torch.ones(20))])


EMPTY_BUFFER = """
import torch
param = torch.nn.Parameter(torch.ones(2**20))
optimizer = torch.optim.SGD([param], lr=0.5, momentum=0.9, fused=True)
saved = optimizer.state_dict()
saved["state"] = {0: {"momentum_buffer": torch.ones(0)}}
optimizer.load_state_dict(saved)
param.grad = torch.ones(2**20)
optimizer.step()
"""


def a_buffer_without_elements():
    done = subprocess.run([sys.executable, "-c", EMPTY_BUFFER], capture_output=True, text=True)
    return "the process crashes" if done.returncode < 0 else done.stderr.strip().splitlines()[-1].split(":")[0]


def sparse_gradients():
    return compared([torch.ones(4)], [torch.ones(4).to_sparse()])


def a_sparse_gradient_of_a_view():
    memory = torch.ones(40)
    stepped([memory[10:14].requires_grad_()], [torch.ones(4).to_sparse()], fused=None)
    return RIGHT if memory.tolist() == [1.0] * 10 + [0.5] * 4 + [1.0] * 26 else "another place is updated"


def dtensors():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        param = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
        stepped([param], [distribute_tensor(torch.ones(4), mesh, [Shard(0)])])
        return RIGHT if param.full_tensor().tolist() == [0.5] * 4 else "wrong weights"
    finally:
        dist.destroy_process_group()


def a_large_rate():
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = SGD([param], lr=0.5, fused=True)
    param.grad = torch.ones(4)
    optimizer.param_groups[0]["lr"] = 1e300
    optimizer.step()
    return RIGHT if param.isfinite().all() else "weights of -inf"


def a_flag_of_1():
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = SGD([param], lr=0.5, momentum=0.9, fused=True)
    param.grad = torch.ones(4)
    optimizer.param_groups[0]["nesterov"] = 1
    optimizer.step()
    return RIGHT


def functional_tensors():
    param = torch._to_functional_tensor(torch.ones(4))
    stepped([param], [torch._to_functional_tensor(torch.ones(4))])
    return RIGHT


def vmap():
    def train(weight):
        param = weight.clone()
        stepped([param], [torch.ones_like(weight)])
        return param

    torch.vmap(train)(torch.ones(2, 3))
    return RIGHT


def forward_mode():
    with forward_ad.dual_level():
        param = forward_ad.make_dual(torch.ones(3), torch.ones(3))
        stepped([param], [param * param])
        tangent = forward_ad.unpack_dual(param).tangent
    return RIGHT if tangent.tolist() == [0.0] * 3 else "the derivative is lost"


#: By the text in the table.
BUGS = {
    "parameter and gradient laid out differently in memory (one of them channels_last, say)": layouts,
    "a parameter whose first gradient comes after others have stepped": a_late_gradient,
    "AMP: the very first step overflows": a_first_step_that_overflows,
    "AMP: `found_inf` is 2 (summed over devices)": a_found_inf_of_2,
    "float16 and bfloat16 parameters on the CPU": half_precision,
    "a gradient that is a lazily negated view": a_negated_gradient,
    "a checkpoint whose momentum buffer has no elements": a_buffer_without_elements,
    "sparse gradients": sparse_gradients,
    "FSDP2 (`DTensor` parameters)": dtensors,
    "a rate or weight decay set by hand that the parameters cannot hold": a_large_rate,
    "`nesterov` or `maximize` set by hand to 1": a_flag_of_1,
    "functional tensors": functional_tensors,
    "parameters inside `torch.vmap`": vmap,
    "forward-mode AD, `torch.func.jvp`": forward_mode,
    "a sparse gradient without dense dimensions for a view, on the CPU": a_sparse_gradient_of_a_view,
}


def observed(case):
    """What happens in this case: "right", what is wrong, or the name of the error."""
    try:
        return BUGS[case]()
    except Exception as error:
        return type(error).__name__


if __name__ == "__main__":
    print(torch.__version__)
    for case in BUGS:
        print(f"{observed(case):45} {case}")
