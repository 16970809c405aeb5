"""What a person names, made real: a network with its weights, an example, methods, a device, a file of settings."""

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from tenfold._batches import IMAGENET, read_batches
from tenfold._data import example_inputs
from tenfold._errors import TenfoldError
from tenfold._method import Method
from tenfold._plan import Record
from tenfold._sources import build_model
from tenfold._store import read_weights, tensors_of
from tenfold._stream import with_weights
from tenfold.methods import DEFAULT, FilterPruning, JointSVD

_ALL: tuple[Method | FilterPruning, ...] = (
    *DEFAULT,
    FilterPruning(),
    JointSVD("right"),
    JointSVD("left"),
    JointSVD("both"),
)
METHODS: dict[str, tuple[Method | FilterPruning, ...]] = {
    name: tuple(method for method in _ALL if method.name == name) for name in dict.fromkeys(each.name for each in _ALL)
}
USUAL = ",".join(dict.fromkeys(method.name for method in DEFAULT))


class FromFile(Record):
    """What a command reads from a file; names of models, data and functions as on the command line."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file, or the JSON that a run left.

        Raises:
            TenfoldError: if it is missing, or says something that is not known.
        """
        try:
            text = path.read_text(encoding="utf-8")
            said = text if path.suffix == ".json" else json.dumps(tomllib.loads(text), default=str)
        except FileNotFoundError:
            raise TenfoldError(f"there is no file {path}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise TenfoldError(f"{path} is no TOML: {error}.") from None
        return cls.loads(said, name=str(path))


class Trained(Record):
    """A trained network and its data, as a file of settings names them."""

    model: str
    weights: str
    input: str  # a shape, such as "1,3,32,32"
    data: str
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    freeze: tuple[str, ...] = ()


def network(reference: str, weights: Path | None) -> nn.Module:
    """The network that a reference names, in eval mode, with weights from a file, or as its code gives them.

    Raises:
        TenfoldError: if there is no such network or file, or they do not belong together.
    """
    if weights is not None and lies_in_shards(weights):
        return with_weights(build_model(reference, empty=True).eval(), weights)
    model = build_model(reference).eval()
    if weights is None:
        return model
    state = read_weights(weights)
    own, held = model.state_dict(), tensors_of(model)
    tied = [names for names, _ in held if not any(name in state for name in names)]
    # Older versions of transformers store buffers that state dicts now leave out.
    known = own.keys() | {name for names, _ in held for name in names}
    missing, unknown = [names[0] for names in tied if names[0] in own], [n for n in state if n not in known]
    misfits = [n for n in own if n in state and own[n].shape != state[n].shape]
    for names, what in ((missing, "lacks"), (unknown, "holds unknown"), (misfits, "has another shape for")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise TenfoldError(f"{weights} {what} {names[0]}{more}: it does not belong to {reference}.")
    model.load_state_dict(state, strict=False)  # what is tied is there under one name
    return model


def lies_in_shards(weights: Path | None) -> bool:
    """Whether weights are to stay in their files."""
    return weights is not None and (weights.is_dir() or weights.suffix == ".json")


def shaped(inputs: Sequence[str]) -> Any:
    """An example of the inputs' shapes: of `1,3,32,32` a tensor, of several `NAME:DTYPE:1,128` a dict of them."""
    pieces = [text.split(":") for text in inputs]
    if len(pieces) == 1 and len(pieces[0]) == 1:
        return _tensor(pieces[0][0], "float32")
    if any(len(piece) != 3 for piece in pieces):
        raise TenfoldError("several inputs need names and types: --input input_ids:int64:1,128.")
    return {name: _tensor(shape, dtype) for name, dtype, shape in pieces}


def _tensor(shape: str, dtype_name: str) -> Tensor:
    dtype = getattr(torch, dtype_name, None)
    if not isinstance(dtype, torch.dtype):
        raise TenfoldError(f'"{dtype_name}" is no dtype of torch, such as float32 or int64.')
    try:
        sizes = [int(size) for size in shape.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise TenfoldError(f'"{shape}" is no shape; write whole numbers above 0 with commas: 1,3,32,32.')
    if not dtype.is_floating_point:
        return torch.ones(sizes, dtype=dtype)  # valid as token, as mask and as position
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(dtype)


def batches_for(
    data: str, count: int, inputs: Any, mean: Sequence[float], std: Sequence[float], *, seed: int = 0
) -> list[Any]:
    """`read_batches` in the shape of an example."""
    tensors = [value for value in example_inputs(inputs).args if isinstance(value, Tensor)]
    return read_batches(data, count, tuple(tensors[0].shape[1:]) if tensors else None, mean, std, seed=seed)


def methods_named(names: str) -> list[Method | FilterPruning]:
    """The methods that a list such as `svd,tucker` names.

    Raises:
        TenfoldError: if one of them is unknown.
    """
    unknown = [name for name in names.split(",") if name not in METHODS]
    if unknown:
        raise TenfoldError(f'there is no method "{unknown[0]}"; known are {", ".join(METHODS)}.')
    return [method for name in names.split(",") for method in METHODS[name]]


def device_named(name: str) -> torch.device:
    """The device of this name.

    Raises:
        TenfoldError: if there is none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TenfoldError(f'"{name}" is no device; use cpu, cuda or cuda:0.') from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError):  # each kind of device has its own for this
        raise TenfoldError(f"there is no device {name} here; use --device cpu.") from None
    return device
