"""Layers as ONNX models, written out by hand: hundreds of them are timed, and an exporter takes a second for each."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from tenfold._data import Inputs
from tenfold._errors import TenfoldError, first_line
from tenfold._factored import Factored, Sum
from tenfold._layers import CONVOLUTIONS, TRANSPOSED
from tenfold._sources import imported

_OPSET, _IR = 18, 9


def model_as_onnx(model: nn.Module, inputs: Inputs, path: Path) -> None:
    """Write a whole network, by torch's exporter, for inputs of these shapes.

    Raises:
        TenfoldError: if it cannot be exported.
    """
    imported("onnxscript", "timing in ONNX Runtime (pip install tenfold[export])")
    try:
        write_onnx(torch.export.export(model, inputs.args, inputs.kwargs), path)
    except Exception as error:  # of torch.export, each of its own kind
        text = f"the model cannot be exported, so ONNX Runtime cannot be timed: {first_line(error)}"
        raise TenfoldError(text) from error


def write_onnx(program: ExportedProgram, path: Path) -> None:
    """Write an exported program by torch's exporter.

    Raises:
        TenfoldError: if it cannot be written.
    """
    try:
        with warnings.catch_warnings():  # the exporter's own copies of its data warn of torch's own changes
            warnings.simplefilter("ignore", FutureWarning)
            torch.onnx.export(program, dynamo=True, verbose=False).save(path)  # type: ignore[union-attr]
    except torch.onnx.errors.OnnxExporterError as error:
        cause: BaseException = error  # what the exporter says itself is advice, with the cause further down
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise TenfoldError(f"torch.onnx cannot export this model: {first_line(cause)}") from error


def layers_as_onnx(module: nn.Module, shape: tuple[int, ...], *, constant: bool = False) -> bytes | None:
    """A layer or a chain of factors, in float32, for an input of one shape; None for what is not known here.

    Weights are drawn, or `constant`, which packs to nothing.
    """
    onnx = imported("onnx", "timing in ONNX Runtime (pip install tenfold[export])")
    graph = _Graph(onnx, constant)
    output = graph.add(module, "x")
    if output is None or any(t.dtype != torch.float32 for t in module.parameters()):
        return None
    number = onnx.TensorProto.FLOAT
    given, found = (
        onnx.helper.make_tensor_value_info(name, number, size) for name, size in (("x", shape), (output, None))
    )
    made = onnx.helper.make_graph(graph.nodes, "layers", [given], [found], graph.weights)
    opset = [onnx.helper.make_opsetid("", _OPSET)]
    return bytes(onnx.helper.make_model(made, opset_imports=opset, ir_version=_IR).SerializeToString())


class _Graph:
    def __init__(self, onnx: Any, constant: bool) -> None:
        self.onnx, self.constant, self.nodes, self.weights = onnx, constant, list[Any](), list[Any]()

    def add(self, module: Any, given: str) -> str | None:
        """Append a module's nodes; the name of its output."""
        if isinstance(module, (Factored, nn.Sequential)):
            name: str | None = given
            for part in module:
                name = None if name is None else self.add(part, name)
            return name
        if isinstance(module, Sum):
            first, second = self.add(module.first, given), self.add(module.second, given)
            return None if first is None or second is None else self._node("Add", [first, second])
        if type(module) is nn.Linear:
            product = self._node("MatMul", [given, self._weight(module.weight.T.shape)])
            return product if module.bias is None else self._node("Add", [product, self._weight(module.bias.shape)])
        if type(module) in (*CONVOLUTIONS, *TRANSPOSED) and module.padding_mode == "zeros":
            return self._convolution(module, given)
        return None

    def _convolution(self, conv: Any, given: str) -> str:
        attributes = {
            "kernel_shape": conv.kernel_size,
            "strides": conv.stride,
            "dilations": conv.dilation,
            "group": conv.groups,
        }
        if conv.padding == "same":  # an odd sum is padded more at the end
            sums = [rate * (size - 1) for rate, size in zip(conv.dilation, conv.kernel_size, strict=True)]
            attributes["pads"] = (*(total // 2 for total in sums), *(total - total // 2 for total in sums))
        elif conv.padding != "valid":
            attributes["pads"] = (*conv.padding, *conv.padding)
        kind = "Conv"
        if isinstance(conv, TRANSPOSED):
            kind, attributes["output_padding"] = "ConvTranspose", conv.output_padding
        inputs = [given, self._weight(conv.weight.shape)]
        inputs += [] if conv.bias is None else [self._weight(conv.bias.shape)]
        return self._node(kind, inputs, **attributes)

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"y{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _weight(self, shape: Any) -> str:
        name = f"w{len(self.weights)}"
        size = tuple(shape)
        values = np.full(size, 0.01) if self.constant else np.random.default_rng(0).uniform(-0.1, 0.1, size)
        self.weights.append(self.onnx.numpy_helper.from_array(values.astype(np.float32), name))
        return name
