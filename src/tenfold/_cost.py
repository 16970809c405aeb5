"""Cost: what a model or a layer takes, found by running it."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tenfold._data import Inputs, example_inputs
from tenfold._engines import Engine, check_engine, runner
from tenfold._latency import interleaved_ms
from tenfold._plan import Record
from tenfold._run import copied, device_of, forward, on_meta, undisturbed, unwrapped
from tenfold._trace import Call

_ATEN = torch.ops.aten

LIMITED = ("params", "macs", "bytes")  # the entries of a layer's cost, in this order
PARAMS, MACS = LIMITED.index("params"), LIMITED.index("macs")


class Cost(Record):
    """What a model takes: counts, bytes, and milliseconds where they were measured."""

    params: int
    macs: int  # multiply-adds of one run of the example
    bytes: int  # of all parameters and buffers, each tensor once
    activation_bytes: int  # peak of everything that lives besides parameters, buffers and the example
    milliseconds: float | None = None  # median of one run of the example


def measure(model: nn.Module, example: Any, *, latency: bool = False, engine: Engine = "eager") -> Cost:
    """Measure a model's cost on one run of the example, in eval mode.

    Multiply-adds are counted by `torch.utils.flop_counter`; `latency=True` adds the median time in the engine, "eager",
    "compile" or "onnxruntime".

    Raises:
        TenfoldError: if the model fails on the example, or the engine is not installed or cannot take it.
    """
    engine = check_engine(engine)
    model, inputs = unwrapped(model), example_inputs(example)
    params, stored = stored_size([*model.parameters()], [*model.buffers()])
    inputs = inputs.on(device_of(model))
    peak = _PeakMemory([*model.parameters(), *model.buffers(), *pytree.tree_leaves(inputs)])
    with undisturbed(model):
        with counting_macs() as counter, peak:
            forward(model, inputs)
        milliseconds = _milliseconds(model, inputs, engine) if latency else None
    return Cost(
        params=params,
        macs=counter.get_total_flops() // 2,
        bytes=stored,
        activation_bytes=peak.peak,
        milliseconds=milliseconds,
    )


def _milliseconds(model: nn.Module, inputs: Inputs, engine: Engine) -> float:
    given = copied(model) if engine == "onnxruntime" else model  # which moves it to the CPU
    (found,) = interleaved_ms([runner(engine, given, inputs)])
    return found


def layers_cost(modules: Iterable[nn.Module], calls: Iterable[Iterable[Call]]) -> NDArray[np.int64]:
    """Parameters, multiply-adds and bytes of layers for the calls of each, from a run on the meta device.

    What several of them share is stored once.
    """
    whole: Any = nn.ModuleList(modules)
    parameters, buffers = [*whole.parameters()], [*whole.buffers()]
    if not all(tensor.is_meta for tensor in [*parameters, *buffers]):
        whole = on_meta(whole)
    with torch.no_grad(), counting_macs() as counter:
        for module, own in zip(whole, calls, strict=True):
            for call in own:
                module(torch.empty(call.shape, dtype=call.dtype, device="meta"))
    params, stored = stored_size(parameters, buffers)
    return np.array([params, counter.get_total_flops() // 2, stored])


def own_cost(module: nn.Module) -> NDArray[np.int64]:
    """Parameters, no multiply-adds, and bytes of what a module holds itself, without what is inside."""
    params, stored = stored_size([*module.parameters(recurse=False)], [*module.buffers(recurse=False)])
    return np.array([params, 0, stored])


def stored_size(parameters: list[nn.Parameter], buffers: list[Tensor]) -> tuple[int, int]:
    """How many parameters there are, and the bytes of all these tensors."""
    return (
        sum(p.numel() for p in parameters),
        sum(t.numel() * t.element_size() for t in [*parameters, *buffers]),
    )


@contextmanager
def counting_macs() -> Iterator[FlopCounterMode]:
    """Count inside.

    Fused encoder layers are switched off meanwhile, because the counter does not know their operators; nor does it
    know the fused attention of CPUs, which has the arguments of the others, and fused recurrent layers.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _Counter(display=False, custom_mapping=_FLOPS) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Counter(FlopCounterMode):
    """Counts in all only: following modules takes hooks that fail on views of parameters made without gradients."""

    def __enter__(self) -> Self:
        self.mod_tracker = _Nowhere()  # type: ignore[assignment]
        return super().__enter__()  # type: ignore[no-untyped-call]


class _Nowhere(nullcontext[None]):
    parents = frozenset({"Global"})  # under which the counter keeps what it sums up


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _recurrent_flops(inputs: Any, weights: Any, *_: Any, **__: Any) -> int:
    """Every matrix meets every step of every sequence."""
    return 2 * prod(inputs[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _recurrent_cpu_flops(inputs: Any, of_inputs: Any, of_states: Any, *_: Any, **__: Any) -> int:
    return _recurrent_flops(inputs, [of_inputs, of_states])


_FLOPS = {  # of shapes; torch has no names for fused recurrent layers but these
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _ATEN._cudnn_rnn: _recurrent_flops,
    _ATEN.miopen_rnn: _recurrent_flops,
    _ATEN.mkldnn_rnn_layer: _recurrent_cpu_flops,
}


class _PeakMemory(TorchDispatchMode):
    """Follows the bytes of living storages that operations made."""

    def __init__(self, known: Iterable[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.known = {one._cdata for leaf in known if isinstance(leaf, Tensor) for one in _storages(leaf)}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(out):
            if isinstance(leaf, Tensor):
                for storage in _storages(leaf):
                    self._follow(storage)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known and key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            weakref.finalize(storage, self.sizes.pop, key, None)


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    """Of a sparse tensor, those of its parts."""
    parts = {
        torch.sparse_coo: ("_indices", "_values"),
        **dict.fromkeys((torch.sparse_csr, torch.sparse_bsr), ("crow_indices", "col_indices", "values")),
        **dict.fromkeys((torch.sparse_csc, torch.sparse_bsc), ("ccol_indices", "row_indices", "values")),
    }.get(tensor.layout)
    dense = [tensor] if parts is None else [getattr(tensor, part)() for part in parts]
    return [one.untyped_storage() for one in dense]
