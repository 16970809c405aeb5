"""A compressed model as a folder: weights in safetensors, `plan.json`, `report.json`. No pickle anywhere."""

import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._apply import skeleton
from tenfold._errors import TenfoldError, first_line
from tenfold._export import load_pt2
from tenfold._layers import stores_channels_last
from tenfold._plan import Plan, Record
from tenfold._resume import refuse_file
from tenfold._run import device_of
from tenfold._shards import INDEX, WEIGHTS, Shards, is_shard, mapped
from tenfold._sources import build_model
from tenfold._verify import Report

PLAN, REPORT, _EXPORTED = "plan.json", "report.json", "model.pt2"
PAGE, SHORT = "report.html", "report.md"  # what `tenfold.report` makes of the two
_SETTING = "setting.json"


def save(
    folder: str | Path, model: nn.Module, plan: Plan, report: Report | None = None, setting: Record | None = None
) -> None:
    """Write a folder from which `load` rebuilds the model. It appears whole or not at all.

    Tensors that several layers share are stored once, and in several files with an index where they take more than
    5 GB. A folder that holds an earlier save is replaced. `setting` is what made the model, where that was a file of
    settings.

    Raises:
        TenfoldError: if `folder` holds anything else, or a module holds extra state.
    """
    refuse_extra_state(model)
    with new_folder(folder) as path:
        shards = Shards(path)
        shards.add({names[0]: tensor for names, tensor in tensors_of(model)})
        shards.finish()
        (path / PLAN).write_text(plan.dumps(), encoding="utf-8")
        if report is not None:
            (path / REPORT).write_text(report.dumps(), encoding="utf-8")
        if setting is not None:
            (path / _SETTING).write_text(setting.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path, dense: nn.Module | None = None) -> nn.Module:
    """Rebuild a saved model, bit for bit, without decomposing and without pickle.

    Args:
        folder: what `save` wrote.
        dense: the network before compression, of any weights, on the device where the other is to be; for the CPU
            also on the meta device. Without it the network is built from the reference in the plan (`timm:NAME`,
            `torchvision:NAME`, `module:callable`), which runs the code that it names; without a reference either,
            `model.pt2` is taken if `export` left it there.

    Raises:
        TenfoldError: if a file is missing, damaged or for another network.
    """
    path = Path(folder)
    plan = load_plan(path / PLAN)
    if dense is None:
        if plan.reference is None and (path / _EXPORTED).is_file():
            return load_pt2(path / _EXPORTED)
        if plan.reference is None:
            raise TenfoldError(
                f"{path} does not say how to build the network and holds no {_EXPORTED}; give it: load(folder, dense)."
            )
        dense = build_model(plan.reference)
    tensors, where = read_tensors(path), device_of(dense)
    if where.type != "meta":
        tensors = {name: tensor.to(where) for name, tensor in tensors.items()}
    new = skeleton(dense, plan)
    assign(new, tensors, path)
    return new.eval()


def load_plan(path: str | Path) -> Plan:
    """Read a `plan.json`.

    Raises:
        TenfoldError: if it is missing or damaged.
    """
    return Plan.loads(_read(Path(path)), name=str(path))


def load_report(folder: str | Path) -> Report:
    """Read the `report.json` of a folder."""
    path = Path(folder) / REPORT
    return Report.loads(_read(path), name=str(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file, or what `mapped` takes."""
    # Cloned, because the file's own memory is not aligned as torch's is, and kernels chosen by alignment round
    # differently.
    return {name: tensor.clone() for name, tensor in mapped(path).items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from `.pt`/`.pth` without running any code that it holds.

    A state dict inside a checkpoint (under "state_dict" or "model") is found, and what data-parallel training
    ("module.") and `torch.compile` ("_orig_mod.") add to names is dropped.
    """
    state = read_tensors(path) if path.suffix == ".safetensors" else _plain(path)
    return {name.replace("_orig_mod.", "").removeprefix("module."): tensor for name, tensor in state.items()}


def _plain(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise TenfoldError(f"there is no file {path}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch.load raises another class for each kind of damage
        raise TenfoldError(
            f"{path} cannot be read as plain weights: {first_line(error)} "
            "Save the state dict alone: torch.save(model.state_dict(), path)."
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TenfoldError(f"{path} holds no state dict (names to tensors); save model.state_dict().")
    return state


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the name `folder` when the block ends without an error."""
    target = Path(folder).absolute()
    refuse_taken(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors lets the owner alone read
            with file.open("r+b") as handle:  # Windows flushes only what can be written
                os.fsync(handle.fileno())
        temporary.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(old)
            temporary.rename(target)
            shutil.rmtree(old)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def refuse_taken(folder: str | Path) -> None:
    """Refuse a folder that exists and holds anything but an earlier save."""
    path = Path(folder)
    refuse_file(path)
    here = Path.cwd()
    if path.absolute().resolve() in (here, *here.parents):  # what is saved takes its place
        raise TenfoldError(f"{path} is the folder that this runs in, or around it; name a new folder.")
    ours = (WEIGHTS, INDEX, PLAN, REPORT, PAGE, SHORT, _SETTING, _EXPORTED)  # all of the earlier model go with it
    if path.is_dir() and (others := sorted(p.name for p in path.iterdir() if p.name not in ours and not is_shard(p))):
        raise TenfoldError(f"{path} holds other files ({others[0]}); name a new folder.")


def refuse_extra_state(model: nn.Module) -> None:
    """Refuse what only `state_dict` knows how to write.

    Raises:
        TenfoldError: if a module holds extra state.
    """
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            what = f"{name or 'the model'} ({type(module).__name__}) holds extra state, which is not saved"
            raise TenfoldError(f"{what}: keep it in buffers, or save the state_dict yourself.")


def tensors_of(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Every parameter and buffer, each once, with all its names.

    Buffers that state dicts leave out are here too, so that a model on the meta device can be filled.
    """
    names: defaultdict[int, list[str]] = defaultdict(list)
    tensors: dict[int, Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                names[id(tensor)].append(f"{prefix}.{name}".lstrip("."))
                tensors[id(tensor)] = tensor
    return [(names[key], tensor) for key, tensor in tensors.items()]


def assign(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors in the places of a model's own of the same names; those with values may keep them.

    Raises:
        TenfoldError: if a tensor is missing, unknown, or of another shape.
    """
    expected = tensors_of(model)
    unknown = tensors.keys() - {name for names, _ in expected for name in names}
    if unknown:
        raise TenfoldError(f"{path} holds {sorted(unknown)[0]}, which the planned network does not have.")
    for names, old in expected:
        value = next((tensors[name] for name in names if name in tensors), None)
        if value is None and not old.is_meta:
            continue
        if value is None:
            raise TenfoldError(f"{path} lacks {names[0]}; it does not belong to this plan.")
        if value.shape != old.shape:
            raise TenfoldError(f"{path}: {names[0]} is {tuple(value.shape)}, the plan makes it {tuple(old.shape)}.")
        if stores_channels_last(old):
            value = value.contiguous(memory_format=torch.channels_last)
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        put_tensor(model, names, new)


def put_tensor(model: nn.Module, names: Iterable[str], tensor: Tensor) -> None:
    """Let a model have a tensor under these names."""
    for name in names:
        owner, _, own = name.rpartition(".")
        module: Any = model.get_submodule(owner)
        (module._parameters if own in module._parameters else module._buffers)[own] = tensor


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except FileNotFoundError:
        raise TenfoldError(f"there is no file {path}.") from None
    except ValueError as error:
        raise TenfoldError(f"{path} is no JSON: {error}. It is truncated or was edited badly.") from None
    return text
