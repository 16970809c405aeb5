"""The kit of `tenfold profile`: one file that times a network's options on another machine, without this package."""

import io
import json
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold import _latency, _on_target
from tenfold._candidates import Options
from tenfold._data import example_inputs, tensors
from tenfold._errors import TenfoldError
from tenfold._layers import CONVOLUTIONS, TRANSPOSED
from tenfold._onnx_layers import layers_as_onnx, model_as_onnx
from tenfold._progress import track
from tenfold._resume import refuse_folder, write_bytes
from tenfold._run import copied
from tenfold._timed import Clock
from tenfold._times import Piece
from tenfold._version import __version__

_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    **dict.fromkeys(
        CONVOLUTIONS,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    ),
    **dict.fromkeys(
        TRANSPOSED,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
}


def write_kit(options: Options, path: Path) -> int:
    """Write the kit of these options for their engine; how many layers and options it times.

    Every weight in it is one constant, which takes no time off or on and packs to nothing.

    Raises:
        TenfoldError: if the engine is "compile", there is nothing to time, or the network cannot be exported.
    """
    if options.engine not in ("onnxruntime", "eager"):
        raise TenfoldError(f'a kit runs in "onnxruntime" or "eager", not in {options.engine!r}.')
    refuse_folder(path)
    pack = io.BytesIO()
    with zipfile.ZipFile(pack, "w", zipfile.ZIP_DEFLATED) as kit:
        kit.writestr("__main__.py", Path(_on_target.__file__).read_text(encoding="utf-8"))
        kit.writestr("latency.py", Path(_latency.__file__).read_text(encoding="utf-8"))
        groups: dict[str, dict[str, Any]] = {}
        for dense, others in track(list(Clock(options, elsewhere=True).pieces()), "pieces"):
            group = groups.setdefault(dense.key, {})
            for piece in (dense, *others):
                entry = None if piece.key in group else _entry(kit, piece, options.engine)
                group.update({} if entry is None else {piece.key: entry})
        timed = [list(group.values()) for key, group in groups.items() if key in group]
        if not timed:
            raise TenfoldError("no layer of one call has an option smaller than it, so there is nothing to time.")
        contents = {
            "tenfold": __version__,
            "engine": options.engine,
            "whole": _whole(kit, options),
            "groups": timed,
        }
        kit.writestr("pieces.json", json.dumps(contents))
    write_bytes(path, pack.getvalue())
    return sum(map(len, timed))


def _entry(kit: zipfile.ZipFile, piece: Piece, engine: str) -> dict[str, Any] | None:
    """A piece as the target machine finds it; None where it can be said in no plain layers."""
    if len(piece.modules) != 1 or len(piece.calls[0]) != 1:
        return None
    (module,), ((call,),) = piece.modules, piece.calls
    entry = {"key": piece.key, "inputs": [[call.shape, str(call.dtype).removeprefix("torch.")]]}
    if engine == "onnxruntime":
        written = layers_as_onnx(module, call.shape, constant=True)
        if written is None:
            return None
        kit.writestr(f"{piece.key}.onnx", written)
        return {**entry, "file": f"{piece.key}.onnx"}
    layer = _described(module)
    return None if layer is None else {**entry, "layer": layer, "channels_last": piece.channels_last}


def _described(module: Any) -> dict[str, Any] | None:
    if isinstance(module, nn.Sequential):
        parts = [_described(part) for part in module]
        return None if None in parts else {"kind": "chain", "parts": parts}
    if type(module) not in _SETTINGS:
        return None
    settings = {name: getattr(module, name) for name in _SETTINGS[type(module)]}
    return {"kind": type(module).__name__, "settings": {**settings, "bias": module.bias is not None}}


def _whole(kit: zipfile.ZipFile, options: Options) -> dict[str, Any]:
    inputs = example_inputs(options.example)
    model = copied(options.model).cpu().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    name = "whole.onnx" if options.engine == "onnxruntime" else "whole.pt2"
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings(action="ignore"):
        path = Path(folder) / name
        if options.engine == "onnxruntime":
            model_as_onnx(model, inputs, path)
        else:
            torch.export.save(torch.export.export(model, inputs.args, inputs.kwargs), path)
        kit.write(path, name)
    shapes = [[tuple(t.shape), str(t.dtype).removeprefix("torch.")] for t in tensors(inputs)]
    return {"key": "whole", "file": name, "inputs": shapes}
