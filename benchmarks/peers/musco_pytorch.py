"""MUSCO: convolutions by CP or Tucker at a common rate of parameters, or by Tucker with ranks from weakened EVBMF.

Those of one pixel stay as they are: its layer for them reads a width that it does not set.
"""

import copy
import time
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.peers._adapter import Batches, Smaller, counted, knob_for, landed, layers

INSTALL = ("musco-pytorch==1.0.6", "numpy<2.3", "scipy<1.14")


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Its three decompositions, of all convolutions but the first, and of all."""
    for name, kind in {"float": float, "int": int, "bool": bool}.items():
        setattr(np, name, kind)  # names that numpy, Python and torch have dropped, and it reads
    time.clock = time.perf_counter  # type: ignore[attr-defined]
    torch.solve = lambda b, a: (torch.linalg.solve(a, b), None)  # type: ignore[attr-defined]
    from flopco import FlopCo
    from musco.pytorch.compressor.compressor import CompressorPR, CompressorVBMF
    from musco.pytorch.compressor.rank_selection.estimator import count_parameters, estimate_rank_for_compression_rate

    shape = tuple(batches[0][0][:1].shape)
    kept = ("conv1", *(name for name, layer in layers(dense).items() if layer.kernel_size == (1, 1)))

    def rated(kind: str, skip: tuple[str, ...], knob: float) -> nn.Module:
        model = copy.deepcopy(dense)
        ranks = dict.fromkeys([*skip, *layers(model, nn.Linear)])
        rates = dict.fromkeys(layers(model), 1 / max(knob, 1e-3))
        further = {"conv2d_nn_decomposition": kind, "ranks": ranks, "param_reduction_rates": rates}
        return _done(CompressorPR(model, FlopCo(model, shape), **further))

    def evbmf(skip: tuple[str, ...], knob: float) -> nn.Module:
        model = copy.deepcopy(dense)
        ranks = dict.fromkeys([*skip, *layers(model, nn.Linear)])
        weaken = dict.fromkeys(layers(model), 1 - knob)
        return _done(CompressorVBMF(model, FlopCo(model, shape), ranks=ranks, vbmf_weakenen_factors=weaken))

    def by_rate(share: float, kind: str) -> nn.Module:
        cut = {name: tuple(layer.weight.shape) for name, layer in layers(dense).items() if name not in kept}
        whole = counted(dense) - sum(layer.weight.numel() for name, layer in layers(dense).items() if name in cut)

        def params(knob: float) -> int:  # by its own formulas: decomposing takes minutes
            ranks = [(shape, estimate_rank_for_compression_rate(shape, 1 / knob, key=kind)) for shape in cut.values()]
            return whole + sum(int(count_parameters(shape, rank, kind)) for shape, rank in ranks)

        return rated(kind, kept, knob_for(params, dense, share, low=0.02))

    def by_evbmf(share: float) -> nn.Module:
        return landed(partial(evbmf, kept), dense, share, halvings=7)

    return {
        **{f"{kind}, all but the first": partial(by_rate, kind=kind) for kind in ("tucker2", "cp3", "cp4")},
        "tucker2, EVBMF, all but the first": by_evbmf,
    }


def _done(compressor: object) -> nn.Module:
    while not compressor.done:  # type: ignore[attr-defined]
        compressor.compression_step()  # type: ignore[attr-defined]
    return compressor.compressed_model  # type: ignore[attr-defined]
