"""SGD as its paper says it, one parameter at a time: the oracle of every fast path."""

import torch


def reference_step(
    params, buffers, *, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False
):
    """Update ``params`` from their gradients and ``buffers`` (a dict by index) in place, in plain arithmetic."""
    with torch.no_grad():
        for i, param in enumerate(params):
            if param.grad is None:
                continue
            grad = param.grad.to_dense() if param.grad.layout is not torch.strided else param.grad
            grad = (-grad if maximize else grad) + weight_decay * param
            if momentum != 0:
                buffers[i] = momentum * buffers[i] + (1 - dampening) * grad if i in buffers else grad.clone()
                grad = grad + momentum * buffers[i] if nesterov else buffers[i]
            param.copy_(param - lr * grad)
