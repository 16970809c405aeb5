"""Where a run that was killed goes on: tensors and numbers in one safetensors file, written in one step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._resume import write_tensors


def write(path: Path, parts: Mapping[str, nn.Module], optimizer: Any, facts: Mapping[str, Any]) -> None:
    """Keep modules, the optimizer's state, and facts that JSON can hold."""
    tensors = {f"{part}/{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"optimizer/{index}/{name}"] = torch.as_tensor(value)
    write_tensors(path, tensors, {"facts": json.dumps(facts)})


def read(path: Path, parts: Mapping[str, nn.Module], optimizer: Any, run: str) -> dict[str, Any] | None:
    """Put everything back, and return the facts; None if there is no file yet.

    Raises:
        TenfoldError: if the file is damaged or of another run than `run`.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            tensors: dict[str, Tensor] = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise TenfoldError(f"{path} is no checkpoint: {error}. Delete it to start anew.") from None
    if facts["run"] != run:
        raise TenfoldError(
            f"{path} is of another run: the networks, the recipe or the number of examples differ. "
            "Name another folder, or delete it to start anew."
        )
    for part, module in parts.items():
        mark = f"{part}/"
        module.load_state_dict({n.removeprefix(mark): t for n, t in tensors.items() if n.startswith(mark)})
    parameters = _parameters(optimizer)
    for name, value in tensors.items():
        kind, index, *rest = name.split("/")
        if kind == "optimizer":
            parameter = parameters[int(index)]
            on = value if rest[0] == "step" else value.to(parameter.device)
            optimizer.state[parameter][rest[0]] = on
    return facts


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
