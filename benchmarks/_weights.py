"""Trained weights in small files: half precision for matrices and kernels, no file above 16 MiB."""

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_PIECE = 2**20  # numbers; a tensor may be larger than a file
_MOST = 15 * 2**20  # bytes a file, which leaves room for its header


def save(stem: Path, model: nn.Module, note: str) -> None:
    """Write `<stem>.1of2.safetensors`, ...; whoever is killed meanwhile leaves no set that counts as complete."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Tensor]] = [{}]
    for name, tensor in model.state_dict().items():
        # Norms stay as they are: they are few, and variances may be beyond half precision.
        kept = tensor.detach().cpu().half() if tensor.dim() > 1 else tensor.detach().cpu()
        for number, piece in enumerate(kept.flatten().split(_PIECE)):
            if sum(other.nbytes for other in files[-1].values()) + piece.nbytes > _MOST:
                files.append({})
            files[-1][f"{name}:{number}"] = piece.clone()
    for number, tensors in enumerate(files, 1):
        path = stem.with_name(f"{stem.name}.{number}of{len(files)}.safetensors")
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(tensors, beside, metadata={"note": note})
        beside.replace(path)


def complete(stem: Path) -> bool:
    """Whether all files are there."""
    paths = _paths(stem)
    return bool(paths) and paths[0].name.endswith(f"of{len(paths)}.safetensors")


@torch.no_grad()
def load(stem: Path, model: nn.Module) -> str:
    """Read what `save` wrote into a network of the same form; returns the note."""
    pieces: dict[str, Tensor] = {}
    for path in _paths(stem):
        with safe_open(path, "pt") as file:
            pieces.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
            note = file.metadata()["note"]
    for name, tensor in model.state_dict().items():
        count = max(1, -(-tensor.numel() // _PIECE))
        values = torch.cat([pieces.pop(f"{name}:{number}") for number in range(count)])
        tensor.copy_(values.view(tensor.shape))
    assert not pieces, f"{stem} holds more than the network: {sorted(pieces)}"
    return note


def _paths(stem: Path) -> list[Path]:
    return sorted(stem.parent.glob(f"{stem.name}.*of*.safetensors"))
