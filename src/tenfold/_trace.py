"""Tracing: one run of the example, to learn which layers are called, with what, and which must stay as they are."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold._data import Inputs, tensors
from tenfold._errors import TenfoldError
from tenfold._layers import LAYERS, channels, kernel_size, kind, owners
from tenfold._run import forward, undisturbed, watched


@dataclass(frozen=True)
class Call:
    """The one input of one call of a layer."""

    shape: tuple[int, ...]
    dtype: torch.dtype  # that the layer takes without autocast


@dataclass(frozen=True)
class Layer:
    """A module that owns a matrix or a kernel, and why it must stay dense, if it must."""

    name: str
    module: nn.Module
    calls: tuple[Call, ...] = ()
    reason: str | None = None
    norm: str | None = None  # the batch norm that its outputs go into


@dataclass(frozen=True)
class Graph:
    """What tracing found: every layer, in the order of the model's definition."""

    layers: dict[str, Layer]

    @property
    def free(self) -> list[Layer]:
        """The layers that may be replaced."""
        return [layer for layer in self.layers.values() if layer.reason is None]

    def calls_of(self, names: Iterable[str]) -> list[Sequence[Call]]:
        """The calls of each of these layers."""
        return [self.layers[name].calls for name in names]


def trace(model: nn.Module, example: Inputs) -> Graph:
    """Run the example once, in eval mode, and describe every module that owns a parameter of two dimensions or more.

    Raises:
        TenfoldError: if the model fails on the example, or returns no tensor.
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if any(p is not None and p.dim() >= 2 for p in module._parameters.values())
    }
    times = owners(model)
    replaced = {module for module in modules.values() if "forward" in vars(module)}
    watch = _Watch({id(p): module for module in modules.values() for p in module._parameters.values()})
    norms: dict[nn.Module | None, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, _BatchNorm)
    }
    with undisturbed(model), watched([*modules.values(), *filter(None, norms)], watch.around), watch:
        outputs = forward(model, example)
    if not tensors(outputs):
        raise TenfoldError(
            f"no tensor is found in what the model returns, a {type(outputs).__name__}; wrap it in a module that "
            "returns tensors, or tuples, lists, dicts or dataclasses of them."
        )
    watch.note_readers(tensors(outputs))

    def reason(module: nn.Module) -> str | None:
        if any(times[id(p)] > 1 for p in module._parameters.values() if p is not None):
            return "its weight is shared with another layer"
        if module is model and issubclass(kind(module), LAYERS):
            return "the model is this layer alone, and stays what it is; put it into a torch.nn.Sequential"
        if module in replaced:
            return "its forward was replaced on the instance"
        return _lost_by_a_replacement(module) or watch.reason(module)

    return Graph(
        {
            name: Layer(
                name,
                module,
                tuple(call for call in watch.calls.get(module, []) if call),
                reason(module),
                norms.get(watch.norm_behind(module)),
            )
            for name, module in modules.items()
        }
    )


def _lost_by_a_replacement(module: nn.Module) -> str | None:
    """What a module is or has that factors in its place would not."""
    if not all(p.is_floating_point() for p in module._parameters.values() if p is not None):
        return "its parameters are no real floating-point numbers"
    if getattr(module, "max_norm", None) is not None:
        return "it scales its rows down to max_norm"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted"
    if any(getattr(module, f"_{when}_hooks") for when in ("forward_pre", "forward", "backward_pre", "backward")):
        return "it has hooks, which a replacement would lose"
    if issubclass(kind(module), LAYERS) and (more := _beside_weight_and_bias(module)):
        return f"it holds more than a weight and a bias, which a replacement would lose: {more[0]}"
    return None


def _beside_weight_and_bias(module: nn.Module) -> list[str]:
    held = [*module._parameters, *module._buffers, *module._modules]
    return [name for name in held if name not in ("weight", "bias")]


def _call(module: nn.Module, given: Tensor) -> Call:
    weight = next(p for p in module._parameters.values() if p is not None and p.dim() >= 2)
    # What autocast casts, inside the model or around it, is not cast where the layer runs alone.
    real = given.is_floating_point() and weight.is_floating_point()
    return Call(tuple(given.shape), weight.dtype if real else given.dtype)


@dataclass
class _Watch(TorchDispatchMode):
    """Notices every operation that reads a watched parameter while its owner's forward is not running."""

    owner: dict[int, nn.Module]
    running: list[nn.Module] = field(default_factory=list)
    outside: set[nn.Module] = field(default_factory=set)
    calls: dict[nn.Module, list[Call | None]] = field(default_factory=dict)
    made: dict[int, tuple[ReferenceType[Tensor], int, nn.Module]] = field(default_factory=dict)  # outputs of layers
    fed: dict[nn.Module, list[nn.Module | None]] = field(default_factory=dict)  # what made the inputs of norms
    normed: bool = False  # whether a norm is running
    read: set[nn.Module] = field(default_factory=set)  # layers whose outputs go elsewhere than into a norm

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = tensors((args, kwargs))
        for tensor in read:
            owner = self.owner.get(id(tensor))
            if owner is not None and owner not in self.running:
                self.outside.add(owner)
        if not self.normed:
            self.note_readers(read)
        return func(*args, **(kwargs or {}))

    def note_readers(self, read: Iterable[Tensor]) -> None:
        """Note that these tensors are read by something that is no norm."""
        self.read.update(filter(None, map(self._maker, read)))

    def around(self, module: nn.Module, run: Any) -> Any:
        """A forward that notes what it is called with, and what becomes of the outputs of layers."""
        is_norm = isinstance(module, _BatchNorm)

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]
            single = len(given) == 1 and isinstance(given[0], Tensor)
            if is_norm:
                self.fed.setdefault(module, []).append(self._maker(given[0]) if single else None)
                self.normed = True
                try:
                    return run(*args, **kwargs)
                finally:
                    self.normed = False
            call = _call(module, given[0]) if single else None
            self.calls.setdefault(module, []).append(call)
            self.running.append(module)
            try:
                output = run(*args, **kwargs)
            finally:
                self.running.pop()
            # Whether anything changes a tensor is not counted in inference mode; channels come second.
            countable = isinstance(output, Tensor) and not output.is_inference()
            if countable and output.dim() == 2 + len(kernel_size(module)):
                self.made[id(output)] = ref(output), output._version, module
            return output

        return forward

    def _maker(self, tensor: Tensor) -> nn.Module | None:
        """The layer whose output this is, if nothing has changed it since."""
        output, layer_version, layer = self.made.get(id(tensor), (None, 0, None))
        return layer if output is not None and output() is tensor and tensor._version == layer_version else None

    def reason(self, module: nn.Module) -> str | None:
        """Why a layer must stay dense, by how it was used."""
        calls = self.calls.get(module, [])
        if module in self.outside:
            return "its weight is read by other code than its own forward"
        if not calls:
            return "it is not called while the example runs"
        return "it is called with more than one tensor" if None in calls else None

    def norm_behind(self, module: nn.Module) -> nn.Module | None:
        """The batch norm that was called once, on the outputs of this one call of a layer, channel for channel.

        None where anything else reads them: what moves the norm's mean does not move theirs.
        """
        norms: list[Any] = [norm for norm, fed in self.fed.items() if fed == [module]]
        if (
            not isinstance(module, LAYERS)
            or module in self.read
            or not len(norms) == len(self.calls.get(module, [])) == 1
        ):
            return None
        return norms[0] if norms[0].num_features == channels(module)[1] else None
