"""Finished work, kept on disk, so that a job that was stopped goes on from there."""

import hashlib
import inspect
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._version import __version__

_folder: ContextVar[Path | None] = ContextVar("tenfold_resumable", default=None)


@contextmanager
def resumable(folder: str | Path) -> Iterator[None]:
    """Inside, every finished piece of long work is kept in `folder`, and taken from there if it is found.

    Statistics, curves, fitted factors, recovered networks and what `evaluate` returned are kept, each under a digest
    of all that it was made from: other weights, data, settings, code of `evaluate` or versions make it anew, and so
    does calibration data in another order. What `evaluate` reads from elsewhere cannot be seen: name another folder
    where that has changed. Files are safetensors, written in one step; the folder may be deleted at any time.

    Raises:
        TenfoldError: if `folder` is a file.
    """
    path = Path(folder)
    refuse_file(path)
    token = _folder.set(path)
    try:
        yield
    finally:
        _folder.reset(token)


@contextmanager
def remembered() -> Iterator[None]:
    """Inside, finished work is kept, also where nobody said `resumable`: then in a folder that is deleted after."""
    if _folder.get() is not None:
        yield
        return
    with TemporaryDirectory(prefix="tenfold-") as folder, resumable(folder):
        yield


def keeping() -> str | None:
    """The folder in which finished work is kept now, if any."""
    folder = _folder.get()
    return None if folder is None else str(folder.absolute())


def forget(folder: Path) -> None:
    """Delete what `resumable` and training in rounds kept in a folder, and the folder if nothing else is in it."""
    for pattern in ("*-" + 32 * "[0-9a-f]" + ".safetensors", "round-*/checkpoint.safetensors"):
        for file in folder.glob(pattern):
            file.unlink()
    for emptied in (*folder.glob("round-*"), folder):
        with suppress(OSError):
            emptied.rmdir()


def kept(what: str, made_from: Callable[[], Any], make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """What `make` returns, from disk where it was made before from equal things. `what` names the kind of work."""
    folder = _folder.get()
    if folder is None:
        return make()
    with torch.random.fork_rng(devices=[]):  # data loaders draw a seed when they are read
        path = folder / f"{what}-{digest(made_from())}.safetensors"
    with suppress(FileNotFoundError, SafetensorError):
        # Cloned: the file's own memory is not aligned as torch's is, and kernels chosen by alignment round differently.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    made = make()
    write_tensors(path, made)
    return made


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, whatever a state dict leaves out, renames or adds."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file in one step. Tensors that share memory, which a file does not take, are cloned."""
    own = torch.contiguous_format
    with _beside(path) as file:
        save_file({name: tensor.detach().clone(memory_format=own) for name, tensor in tensors.items()}, file, metadata)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with _beside(path) as file:
        file.write_bytes(content)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A file that takes the name `path` when the block ends without an error, and is gone otherwise."""
    refuse_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        yield file
        file.replace(path)
    finally:
        file.unlink(missing_ok=True)


def refuse_file(folder: Path) -> None:
    """Refuse as a folder what is a file, or would lie in one."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise TenfoldError(f"{path} is a file; name a folder.")


def refuse_folder(file: Path) -> None:
    """Refuse as a file what is a folder, or would lie in a file."""
    refuse_file(file.parent)
    if file.is_dir():
        raise TenfoldError(f"{file} is a folder; name a file.")


@dataclass(frozen=True)
class Each:
    """Data to be told apart by its items, which are read one by one."""

    items: Iterable[Any]


def digest(*values: Any) -> str:
    """Tells values from each other: tensors by what they hold, modules by that and their code and plain attributes.

    Functions are told apart by source and what they capture.

    Other objects are told apart as pickle would write them; what cannot be written or holds itself is like nothing.
    """
    found = hashlib.sha256()
    try:
        for value in (__version__, torch.__version__, *values):
            _feed(found, value)
    except Exception:  # noqa: BLE001  each object says in its own way that it cannot be written
        found.update(uuid4().bytes)
    return found.hexdigest()[:32]


def _feed(found: Any, value: Any) -> None:
    found.update(f"{type(value).__module__}.{type(value).__qualname__}(".encode())
    if isinstance(value, Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, nn.Module):
        _feed(
            found, (repr(value), {**value.state_dict(), **tensors_by_name(value)}, [*map(_settings, value.modules())])
        )
    elif isinstance(value, FunctionType):
        _feed(found, (value.__module__, value.__qualname__, _source(value), value.__defaults__, value.__kwdefaults__))
        _feed(found, [cell.cell_contents for cell in value.__closure__ or ()])
    elif isinstance(value, (Each, Mapping, list, tuple)):
        items = value.items if isinstance(value, Each) else value.items() if isinstance(value, Mapping) else value
        for item in items:
            _feed(found, item)
    elif is_dataclass(value) and not isinstance(value, type):
        _feed(found, {field.name: getattr(value, field.name) for field in fields(value)})
    elif isinstance(value, (str, int, float)):
        found.update(repr(value).encode())
    else:
        found.update(pickle.dumps(value))
    found.update(b")")


def _settings(module: nn.Module) -> tuple[dict[str, Any], str]:
    """What a module's forward may read that is no tensor, and its code, unless it is torch's."""
    plain = {name: value for name, value in vars(module).items() if _is_plain(value) and name != "training"}
    return plain, _class_source(type(module))  # type: ignore[arg-type]  # classes can be hashed


@cache  # reading it takes as long as parsing its file
def _class_source(kind: type) -> str:
    return "" if kind.__module__.startswith("torch.") else _source(kind)


def _is_plain(value: Any) -> bool:
    return all(isinstance(each, (str, int, float)) for each in (value if isinstance(value, tuple) else [value]))


def _source(code: FunctionType | type) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        own = [code] if isinstance(code, FunctionType) else vars(code).values()
        functions = [each.__code__ for each in own if isinstance(each, FunctionType)]
        return "".join(each.co_code.hex() + repr(each.co_consts) for each in functions)
