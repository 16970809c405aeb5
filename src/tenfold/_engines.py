"""Engines: what runs a network, made ready to be run again and again."""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from tenfold._data import Inputs, tensors
from tenfold._errors import TenfoldError
from tenfold._onnx_layers import layers_as_onnx, model_as_onnx
from tenfold._run import device_of
from tenfold._sources import imported

Engine = Literal["eager", "compile", "onnxruntime"]
ENGINES: tuple[Engine, ...] = get_args(Engine)


def check_engine(name: str) -> Engine:
    """The engine of this name; what is none is refused."""
    for engine in ENGINES:
        if engine == name:
            return engine
    raise TenfoldError(f"there is no engine {name!r}; use {', '.join(map(repr, ENGINES))}.")


def runner(engine: Engine, model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    """What runs a model in eval mode on these inputs, compiled or loaded already, with as many threads as torch has.

    The model is the caller's to give away: its mode and device may change.

    Raises:
        TenfoldError: if the engine is not installed, or cannot take the model.
    """
    model = model.eval()
    if engine == "onnxruntime":
        return _in_onnxruntime(model, inputs.on(torch.device("cpu")))
    inputs = inputs.on(device_of(model))
    called: Any = _compiled(model) if engine == "compile" else model

    def run() -> Any:
        with torch.no_grad():
            return called(*inputs.args, **inputs.kwargs)

    run()
    return run


def _compiled(model: nn.Module) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    # With a code object of its own: torch.compile keeps what it made with these, eight each, and runs more uncompiled.
    own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return torch.compile(own)


def layer_runner(engine: Engine, layer: nn.Module, given: Tensor) -> Callable[[], Any]:
    """`runner` of a layer or of what replaces it; in ONNX Runtime, with other values than its own."""
    if engine == "onnxruntime":
        written = layers_as_onnx(layer, tuple(given.shape))
        if written is not None:
            return _session(written, [given.cpu()])
    return runner(engine, layer, Inputs((given,), {}))


def _in_onnxruntime(model: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings(action="ignore"):
        path = Path(folder) / "model.onnx"
        model_as_onnx(model.cpu(), inputs, path)
        return _session(path, tensors(inputs))


def _session(model: bytes | Path, given: Sequence[Tensor]) -> Callable[[], Any]:
    onnxruntime = imported("onnxruntime", "timing in ONNX Runtime (pip install tenfold[export])")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    arrays = {put.name: tensor.numpy() for put, tensor in zip(session.get_inputs(), given, strict=True)}

    def run() -> Any:
        return session.run(None, arrays)

    run()
    return run
