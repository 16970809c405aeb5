"""Times of layers: measured on the machine at hand, and kept."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _on_target
from tenfold._engines import Engine, layer_runner
from tenfold._errors import TenfoldError
from tenfold._factored import materialise
from tenfold._latency import paced_ms
from tenfold._layers import store_channels_last
from tenfold._plan import Record
from tenfold._resume import write_text
from tenfold._run import on_meta
from tenfold._sources import imported
from tenfold._trace import Call
from tenfold._version import __version__

_SURE = "-sure"  # marks the key of what was measured after it was chosen


class Conditions(Record):
    """What times depend on, besides the layer and its input."""

    engine: Engine
    device: str  # the name of the processor
    threads: int
    versions: tuple[str, ...]

    @classmethod
    def here(cls, engine: Engine, device: torch.device) -> "Conditions":
        """Those of this process, for models on a device."""
        names = ("torch", "onnxruntime") if engine == "onnxruntime" else ("torch",)
        versions = tuple(f"{name} {_version(name)}" for name in names)
        return cls(engine=engine, device=device_name(device), threads=torch.get_num_threads(), versions=versions)


def device_name(device: torch.device) -> str:
    """The processor, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _on_target.device()


@dataclass(frozen=True, eq=False)
class Piece:
    """Layers, and the calls of each, that are timed as one."""

    modules: tuple[nn.Module, ...]  # their values do not matter
    calls: tuple[tuple[Call, ...], ...]
    like: Tensor  # a weight of the dense layer, whose device all take
    channels_last: bool  # whether convolutions of two axes store them, and get their inputs so

    @property
    def key(self) -> str:
        """Tells layers, inputs and memory formats apart, and nothing else."""
        layers = [(repr(m), [getattr(part, "form", "") for part in m.modules()]) for m in self.modules]
        inputs = [[(call.shape, str(call.dtype)) for call in own] for own in self.calls]
        weight = str(self.like.dtype)
        return hashlib.sha256(json.dumps([layers, inputs, weight, self.channels_last]).encode()).hexdigest()[:24]

    def runs(self, engine: Engine) -> list[Any]:
        """What runs each layer on the input of each of its calls, with drawn values."""
        generator = torch.Generator(self.like.device).manual_seed(0)
        found = []
        for module, own in zip(self.modules, self.calls, strict=True):
            copied = on_meta(module)
            draw(copied, generator)
            if self.channels_last:
                store_channels_last(copied)
            found += [layer_runner(engine, copied, self._input(call, generator)) for call in own]
        return found

    def _input(self, call: Call, generator: torch.Generator) -> Tensor:
        if not call.dtype.is_floating_point:
            return torch.zeros(call.shape, dtype=call.dtype, device=self.like.device)
        given = torch.empty(call.shape, dtype=call.dtype, device=self.like.device)
        given.uniform_(-1, 1, generator=generator)
        return given.to(memory_format=torch.channels_last) if self.channels_last and given.dim() == 4 else given


def draw(model: nn.Module, generator: torch.Generator) -> None:
    """Give a model on the meta device memory and small drawn values, where the generator is; orders are drawn too."""
    materialise(model, generator.device)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(-0.1, 0.1, generator=generator)
            else:
                order = torch.randperm(tensor.numel(), generator=generator, device=generator.device)
                tensor.copy_(order.reshape(tensor.shape))


class Profile(Record):
    """Times that were measured on another machine by the kit of `tenfold profile`."""

    tenfold: str
    conditions: Conditions
    times: dict[str, float]  # milliseconds
    whole_ms: float  # of the dense network

    @classmethod
    def load(cls, path: str | Path) -> "Profile":
        """Read the file that the kit wrote.

        Raises:
            TenfoldError: if it is missing or damaged.
        """
        try:
            return cls.loads(Path(path).read_text(encoding="utf-8"), name=str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise TenfoldError(f"{path} cannot be read: {error}.") from None

    def of(self, dense: Piece, others: Sequence[Piece]) -> tuple[float, list[float]]:
        """As `Times.of`; what the kit did not time takes as long as can be, so that it is not chosen."""
        if dense.key not in self.times:
            raise TenfoldError("the profile is of another network, input or setting; make the kit anew.")
        return self.times[dense.key], [self.times.get(piece.key, inf) for piece in others]


class Times:
    """Milliseconds of pieces and networks under one set of conditions, measured beside the dense ones, and kept.

    They are kept in a file in the folder that `TENFOLD_CACHE` names, `~/.cache/tenfold` by default, one for each set of
    conditions.
    """

    def __init__(self, engine: Engine, device: torch.device) -> None:
        self.engine, self.device, self.conditions = engine, device, Conditions.here(engine, device)
        folder = Path(os.environ.get("TENFOLD_CACHE") or Path.home() / ".cache" / "tenfold")
        digest = hashlib.sha256(self.conditions.model_dump_json().encode()).hexdigest()[:16]
        self.path = folder / f"times-{digest}.json"
        self.known: dict[str, float] = self._read()

    def of(self, dense: Piece, others: Sequence[Piece]) -> tuple[float, list[float]]:
        """The times of dense layers and of what could replace them; what is not known is measured, interleaved."""
        every = {self._key(piece): piece for piece in others}
        missing = [piece for key, piece in every.items() if key not in self.known]
        if missing or dense.key not in self.known:
            measured = self._measured([dense, *missing])
            usual = self.known.setdefault(dense.key, measured[0])
            for piece, found in zip(missing, measured[1:], strict=True):
                self.known[piece.key] = found * usual / measured[0]
            self._write()
        return self.known[dense.key], [self.known[self._key(piece)] for piece in others]

    def surely(self, dense: Piece, chosen: Piece) -> None:
        """Have what was chosen measured once more, which counts from now on: of many options, luck is chosen too."""
        if self._key(chosen) == chosen.key:
            usual, found = self._measured([dense, chosen])
            self.known[chosen.key + _SURE] = found * self.known.get(dense.key, usual) / usual
            self._write()

    def _key(self, piece: Piece) -> str:
        """Where the time of a piece is kept that counts."""
        return piece.key + _SURE * (piece.key + _SURE in self.known)

    def network(self, key: str, measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
        """The times of a dense network and of another beside it; measured if they are not known."""
        names = (f"{key}-dense", f"{key}-small")
        if not all(name in self.known for name in names):
            self.known.update(zip(names, measure(), strict=True))
            self._write()
        return self.known[names[0]], self.known[names[1]]

    def paced(self, runs: Sequence[Callable[[], Any]], **how: Any) -> list[float]:
        """Milliseconds of runs, in the pace that is kept with the times."""
        return paced_ms(runs, self._pacemaker, self.known, **how)

    @cached_property
    def _pacemaker(self) -> Callable[[], Any]:
        layer, given = on_meta(nn.Conv2d(64, 64, 3, padding=1, device="meta")), Call((1, 64, 16, 16), torch.float32)
        (run,) = Piece((layer,), ((given,),), torch.empty(0, device=self.device), channels_last=False).runs(self.engine)
        return run

    def _measured(self, pieces: Sequence[Piece]) -> list[float]:
        runs = [piece.runs(self.engine) for piece in pieces]
        each = iter(self.paced([run for own in runs for run in own], rounds=9, least_ms=2.0))
        return [sum(next(each) for _ in own) for own in runs]

    def _read(self) -> dict[str, float]:
        try:
            times = json.loads(self.path.read_text(encoding="utf-8"))["times"]
            return {str(key): float(value) for key, value in times.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # there is none yet, or it is damaged: measured anew

    def _write(self) -> None:
        self.known = {**self._read(), **self.known}  # another process may have measured too
        table = {"tenfold": __version__, "conditions": self.conditions.model_dump(), "times": self.known}
        write_text(self.path, json.dumps(table, indent=1) + "\n")


def _version(name: str) -> str:
    return str(imported(name, "timing in ONNX Runtime (pip install tenfold[export])").__version__)
