"""Batch norms folded into the layers before them, as they run in eval mode."""

# g groups, o outputs a group, i inputs a group, ... kernel axes

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from tenfold._apply import places_of, replace_module
from tenfold._layers import LAYERS, groups, kernels, owners, write

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_norms(model: nn.Module, program: ExportedProgram) -> int:
    """Fold every batch norm that is all that reads a layer's output into that layer; how many.

    `program` is the exported model, whose graph tells what reads what; `model` is changed.
    """
    pairs = list(_pairs(model, program))
    places = places_of(model)
    for layer, norm in pairs:
        _fold(layer, norm)
        replace_module(places, norm, nn.Identity())
    return len(pairs)


def _pairs(model: nn.Module, program: ExportedProgram) -> Iterator[tuple[nn.Module, nn.Module]]:
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    times = owners(model)
    for node in program.graph.nodes:
        if getattr(node.target, "overloadpacket", None) is not torch.ops.aten.batch_norm:
            continue
        before, mean = node.args[0], node.args[3]
        layer, norm = _owner(model, names, before.args[1] if len(before.args) > 1 else None), _owner(model, names, mean)
        if type(layer) not in LAYERS or type(norm) not in _NORMS:
            continue
        weight = before.args[1]
        read_once = len(before.users) == len(weight.users) == len(mean.users) == times[id(layer.weight)] == 1
        # Else the norm's channels are no outputs of the layer: it sees them in another dimension.
        same_axes = before.meta["val"].dim() == weight.meta["val"].dim()
        if read_once and same_axes:
            yield layer, norm


def _owner(model: nn.Module, names: Mapping[str, str], value: Any) -> Any:
    """The module whose own parameter or buffer this is."""
    name = names.get(value.name) if isinstance(value, fx.Node) else None
    return None if name is None else model.get_submodule(name.rpartition(".")[0])


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt() * (norm.weight.double() if norm.affine else 1)
    bias = 0 if layer.bias is None else layer.bias.double()
    shift = (bias - norm.running_mean.double()) * scale + (norm.bias.double() if norm.affine else 0)
    weight = kernels(layer).double()
    write(layer, weight * scale.reshape(groups(layer), -1, *[1] * (weight.dim() - 2)))
    layer.bias = nn.Parameter(shift.to(layer.weight.dtype), requires_grad=False)
