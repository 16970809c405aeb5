"""Intel Neural Compressor: version 3 quantises only; the pruning of version 2 is asked for, and not there."""

from torch import nn

from benchmarks.peers._adapter import Batches, Smaller

INSTALL = ("neural-compressor-pt==3.10",)


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:  # noqa: ARG001
    """Its pruning, if this version has one."""
    from neural_compressor.compression.pruner import save  # noqa: F401

    return {}
