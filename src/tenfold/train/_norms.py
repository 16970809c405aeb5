"""Batch norms over the examples of all processes, on any device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold._run import watched


@contextmanager
def synchronised(model: nn.Module, processes: int) -> Iterator[None]:
    """Inside, batch norms in training mode see the batches of all processes, as one process would the whole.

    (torch's own `SyncBatchNorm` does the same on GPUs only.)
    """
    if processes == 1:
        yield
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def around(norm: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: _normed(norm, x, processes) if norm.training else run(x)

    with watched(norms, around):
        yield


def _normed(norm: Any, x: Tensor, processes: int) -> Tensor:
    from torch.distributed.nn.functional import all_reduce

    axes = [0, *range(2, x.dim())]
    count = processes * x.numel() // x.shape[1]
    mean = all_reduce(x.float().sum(axes)) / count
    shape = (1, -1, *[1] * (x.dim() - 2))
    centred = x.float() - mean.view(shape)
    variance = all_reduce(centred.square().sum(axes)) / count
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked += 1
            share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(mean.to(norm.running_mean), share)
            norm.running_var.lerp_((variance * count / max(count - 1, 1)).to(norm.running_var), share)
    normed = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        normed = normed * norm.weight.view(shape) + norm.bias.view(shape)
    return normed.to(x.dtype)
