"""NNCF: since version 3 its pruning puts zeros where weights were, and takes nothing out of a network."""

import copy

from torch import Tensor, nn

from benchmarks.peers._adapter import Batches, Smaller

INSTALL = ("nncf==3.4.0", "torchao==0.18.0")


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Magnitude over all layers, the masks folded into the weights."""
    import nncf

    def masked(share: float) -> nn.Module:
        mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL
        model = nncf.prune(_Held(copy.deepcopy(dense)), mode, ratio=1 - share, examples_inputs=batches[0][0][:1])
        return nncf.strip(model, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE)

    return {"magnitude, all layers": masked}


class _Held(nn.Module):
    """It adds a module of its own to the network, which a bare `nn.Sequential` would run."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """What is held."""
        return self.net(x)
