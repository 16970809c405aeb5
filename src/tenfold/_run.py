"""Running somebody's model without leaving a trace on it."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from tenfold._data import Inputs
from tenfold._errors import TenfoldError

_WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}
_SHARDED = ("FullyShardedDataParallel", "FSDPModule")


def is_sharded(model: nn.Module) -> bool:
    """Whether torch's `fully_shard` has spread the weights over processes."""
    return any(base.__name__ == "FSDPModule" for module in model.modules() for base in type(module).__mro__)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside data-parallel and `torch.compile` wrappers, with parametrisations folded (on a copy).

    Raises:
        TenfoldError: if its weights are sharded, uninitialised, it is scripted, or no `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TenfoldError(f"the model is a {type(model).__name__}; give a torch.nn.Module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TenfoldError("the model is scripted, so its layers cannot be replaced; give the module it was made from.")
    while (attribute := _WRAPPERS.get(type(model).__name__)) is not None:
        model = getattr(model, attribute)
    for name, module in model.named_modules():
        if any(base.__name__ in _SHARDED for base in type(module).__mro__):
            raise TenfoldError(f"{name or 'the model'} is wrapped in FSDP; gather the full model on one device first.")
    for name, tensor in model.named_parameters():
        if type(tensor).__name__ == "DTensor":
            raise TenfoldError(f"{name} is a DTensor; gather the full model on one device first.")
        if isinstance(tensor, nn.parameter.UninitializedParameter):
            raise TenfoldError(f"{name} has no shape yet (a lazy module); run the model once first.")
    if any(map(parametrize.is_parametrized, model.modules())):
        model = copied(model)
        for module in list(model.modules()):
            if parametrize.is_parametrized(module):
                _fold(module)
    return model


def _fold(module: nn.Module) -> None:
    # Not by torch's remove_parametrizations: it takes the weight off a class that the copy shares with the original.
    training = module.training
    with torch.no_grad():
        values = {name: getattr(module.eval(), name).clone() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))
    module.train(training)


def copied(model: nn.Module, instead: Mapping[int, torch.Tensor] | None = None) -> nn.Module:
    """A deep copy; what has one of the ids of `instead` is that in it.

    Tensors that were computed with gradients are detached, because torch does not copy them: modules hold such as
    attributes when hooks, such as those of `torch.nn.utils.weight_norm`, or their forward have put them there.
    """
    held = pytree.tree_leaves([vars(module) for module in model.modules()])
    computed = {id(leaf): leaf.detach().clone() for leaf in held if isinstance(leaf, torch.Tensor) and not leaf.is_leaf}
    return copy.deepcopy(model, {**computed, **(instead or {})})


def on_meta(model: nn.Module) -> nn.Module:
    """A copy on the meta device: every shape, no values."""
    held = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copied(model, {key: without_values(tensor) for key, tensor in held.items()})


def without_values(tensor: torch.Tensor, device: torch.device | str = "meta") -> torch.Tensor:
    """One of the same shape and kind, on a device."""
    empty = torch.empty_like(tensor, device=device)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def trainable() -> Iterator[None]:
    """What is made inside can be trained, also where the caller is in inference mode; else gradients are as before."""
    needed = torch.is_grad_enabled()
    with torch.inference_mode(mode=False), torch.set_grad_enabled(needed):
        yield


def same_draws() -> AbstractContextManager[None]:
    """Random state is put back after: of the CPU, and of GPUs if they are in use; others are not woken up.

    Of two networks that are compared, the one that runs inside draws what the other draws after it.
    """
    return torch.random.fork_rng(range(torch.cuda.device_count()) if torch.cuda.is_initialized() else [])


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside; modes, buffers and random state are put back after."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, None if buffer.is_meta else buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with same_draws(), trainable(), torch.no_grad():
            _into_eval_mode(model)
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if value is not None and not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def _into_eval_mode(model: nn.Module) -> None:
    try:
        model.eval()
    except NotImplementedError as error:  # what torch.export makes
        reason = str(error).rstrip(".")
        raise TenfoldError(
            f"the model has no eval mode ({reason}); give the module that it was exported from."
        ) from None


@contextmanager
def watched(modules: Iterable[nn.Module], around: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """While inside, the forward of each module is `around(module, its forward)`.

    By replacing `forward` on the instance, not by hooks: torch's fused attention looks for hooks and takes another
    path when there are any. Scripted modules, which take no other forward, are left out.
    """
    before = {
        module: vars(module).get("forward") for module in modules if not isinstance(module, torch.jit.ScriptModule)
    }
    try:
        for module in before:
            vars(module)["forward"] = around(module, module.forward)
        yield
    finally:
        for module, replaced in before.items():
            if replaced is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = replaced


def forward(model: nn.Module, inputs: Inputs) -> Any:
    """Call the model.

    Raises:
        TenfoldError: if it fails, with its own words.
    """
    inputs = inputs.on(device_of(model))
    try:
        return model(*inputs.args, **inputs.kwargs)
    except TenfoldError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise TenfoldError(
            f"the model fails on an input of {inputs.describe()}: {type(error).__name__}: {reason.rstrip('.')}. "
            "Check the example's shape and dtype."
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
