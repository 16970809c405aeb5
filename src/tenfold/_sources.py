"""Models by name: `timm:NAME`, `torchvision:NAME`, `transformers:CONFIG`, `module:callable`."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn

from tenfold._errors import TenfoldError, first_line
from tenfold._run import without_values


def build_model(reference: str, *, empty: bool = False) -> nn.Module:
    """Build a network from a reference, with weights as its code initialises them; or `empty`, on the meta device.

    Buffers have their values in any case: files of weights need not hold them.

    Raises:
        TenfoldError: if there is no such thing, or what it names makes no `nn.Module`.
    """
    kind, _, name = reference.partition(":")
    build = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}.get(kind)
    with torch.random.fork_rng(devices=[]), _without_memory() if empty else nullcontext():
        model = build(name) if build else named(reference)()
    if not isinstance(model, nn.Module):
        raise TenfoldError(f"{reference} gives a {type(model).__name__}, not a torch.nn.Module.")
    return model


@contextmanager
def _without_memory() -> Iterator[None]:
    """Parameters of modules that are made inside are on the meta device."""
    registered = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        on_meta = None if parameter is None or parameter.is_meta else without_values(parameter)
        registered(module, name, parameter if on_meta is None else cast(nn.Parameter, on_meta))

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = registered  # type: ignore[method-assign]


def named(reference: str) -> Callable[..., Any]:
    """What `package.module:callable` names.

    Raises:
        TenfoldError: if it cannot be imported or called.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
        raise TenfoldError(f'"{reference}" is not of the form package.module:callable.')
    module = imported(module_name, reference)
    found = getattr(module, attribute, None)
    if not callable(found):
        raise TenfoldError(f"{module_name} has no callable {attribute}.")
    return found


def imported(module: str, reference: str) -> Any:
    """Import a module that `reference` needs, or refuse it."""
    try:
        return _import(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: compiled operators for another torch
        raise TenfoldError(f"{reference} cannot be imported: {error}.") from None


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        declare_operators()
        return importlib.import_module(module)


@cache
def declare_operators() -> torch.library.Library:
    """Declare the operators that torchvision's Python code names, where it was compiled for another torch.

    So it happens where torch comes from one place and torchvision from another. timm needs torchvision too. Networks
    that need the operators themselves, to choose boxes, fail and say so.
    """
    library = torch.library.Library("torchvision", "DEF")  # declared for as long as this lives, which the cache sees to
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _timm(name: str) -> Any:
    timm = imported("timm", f"timm:{name} (pip install tenfold[models])")
    if not timm.is_model(name):
        raise TenfoldError(f'timm has no model "{name}"; timm.list_models() lists them.')
    return timm.create_model(name, pretrained=False)


def _torchvision(name: str) -> Any:
    models = imported("torchvision.models", f"torchvision:{name} (pip install tenfold[models])")
    if name not in models.list_models():
        raise TenfoldError(f'torchvision has no model "{name}"; torchvision.models.list_models() lists them.')
    return models.get_model(name, weights=None)


def _transformers(config: str) -> Any:
    reference = f"transformers:{config} (pip install tenfold[models])"
    transformers = imported("transformers", reference)
    if find_spec("torchvision"):  # transformers imports it when a class is first named
        imported("torchvision", reference)
    try:
        settings = transformers.AutoConfig.from_pretrained(config, local_files_only=True)
    except (OSError, ValueError) as error:
        raise TenfoldError(
            f"{config} is no transformers configuration (a config.json or its folder): {first_line(error)}"
        ) from None
    architecture = getattr(transformers, (settings.architectures or ["AutoModel"])[0], transformers.AutoModel)
    if hasattr(architecture, "from_config"):
        return architecture.from_config(settings)
    return architecture(settings)
