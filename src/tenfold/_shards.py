"""Weights in files: one safetensors file, or several and an index; read where they are needed, written as they come."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tenfold._errors import TenfoldError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # which of the files holds a tensor, as the Hugging Face hub has it


def mapped(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, of an index, or of a folder with either, mapped into memory.

    What is not read takes no memory, and what was read can be dropped again by the system.

    Raises:
        TenfoldError: if a file is missing or damaged.
    """
    path = Path(path)
    if path.is_dir():
        path = path / (INDEX if (path / INDEX).exists() else WEIGHTS)
    if path.suffix != ".json":
        return _of_file(path)
    try:
        places: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {name: _of_file(_beside(path, name)) for name in sorted(set(places.values()))}
        return {name: files[file][name] for name, file in places.items()}
    except FileNotFoundError:
        raise TenfoldError(f"there is no file {path}.") from None
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        if isinstance(error, TenfoldError):
            raise
        raise TenfoldError(f"{path} is no index of safetensors files, or one lacks {error}.") from None


def _beside(index: Path, name: str) -> Path:
    if Path(name).name != name:
        raise TenfoldError(f'{index} names "{name}", which is no file beside it; put all files into one folder.')
    return index.parent / name


def _of_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise TenfoldError(f"there is no file {path}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise TenfoldError(f"{path} cannot be read: {error}. It is truncated or no safetensors file.") from None


class Shards:
    """Writes tensors into a folder, in files of at most `most` bytes, each of which holds at least one tensor."""

    def __init__(self, folder: Path, most: int = 5 * 10**9) -> None:
        self.folder, self.most = folder, most
        self._waiting: dict[str, Tensor] = {}
        self._written: list[dict[str, int]] = []  # bytes of each tensor of each file

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Write these too, in time."""
        for name, tensor in tensors.items():
            if self._waiting and _bytes(self._waiting) + tensor.nbytes > self.most:
                self._write()
            self._waiting[name] = tensor.detach().contiguous()

    def finish(self) -> None:
        """Write what is left, and the index if there are several files."""
        self._write()
        count = len(self._written)
        if count == 1:
            (self.folder / _name(1)).rename(self.folder / WEIGHTS)
            return
        names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        for number, name in enumerate(names, 1):
            (self.folder / _name(number)).rename(self.folder / name)
        places = {tensor: name for name, sizes in zip(names, self._written, strict=True) for tensor in sizes}
        total = sum(size for sizes in self._written for size in sizes.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write(self) -> None:
        self._written.append({name: tensor.nbytes for name, tensor in self._waiting.items()})
        save_file(self._waiting, self.folder / _name(len(self._written)), metadata={"format": "pt"})
        self._waiting = {}


def is_shard(path: Path) -> bool:
    """Whether a file is one of several, by its name."""
    return re.fullmatch(r"model-\d{5,}-of-\d{5,}\.safetensors", path.name) is not None


def _name(number: int) -> str:
    return f"part-{number:05}.safetensors"


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
