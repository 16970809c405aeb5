"""Networks larger than memory: weights are read from files layer by layer, and what they become is written so."""

import copy
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from tenfold._apply import sharing, taken
from tenfold._plan import Plan, Step
from tenfold._run import on_meta, unwrapped, without_values
from tenfold._shards import Shards, mapped
from tenfold._statistics import Statistics
from tenfold._store import PLAN, assign, new_folder, put_tensor, refuse_extra_state, tensors_of


def with_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """The network with the weights that lie in files, which are read where they are needed and keep their dtype.

    Args:
        model: the network, with any weights; its parameters may be on the meta device.
        path: a `.safetensors` file, the index of several, or a folder with either.

    Raises:
        TenfoldError: if a file is missing or damaged, or a tensor is missing, unknown, or of another shape.
    """
    new = on_meta(model)
    for name, buffer in model.named_buffers():
        if not buffer.is_meta:  # what is not in the files stays as the network has it
            owner, _, own = name.rpartition(".")
            new.get_submodule(owner)._buffers[own] = copy.deepcopy(buffer)
    assign(new, mapped(path), Path(path))
    return new


def apply_to(
    folder: str | Path,
    model: nn.Module,
    plan: Plan,
    statistics: Statistics | None = None,
    *,
    shard_bytes: int = 10**9,
) -> None:
    """`save(folder, apply(model, plan, statistics), plan)`, with no more in memory than a layer and a file's worth.

    Weights are written in files of at most `shard_bytes`, with an index if there are several. The model may be one of
    `with_weights`; `load(folder, model)` and `with_weights` read the result.

    Raises:
        TenfoldError: if the plan was made for another network, `folder` holds anything but an earlier save,
            or a module holds extra state.
    """
    model = unwrapped(model)
    plan.check_made_for(model)
    refuse_extra_state(model)
    new = sharing(model, model.modules(), plan)
    with new_folder(folder) as path:
        shards = Shards(path, shard_bytes)

        def put(step: Step) -> None:
            later = [name for other in plan.steps for name in other.layers]
            if not any(name.startswith(f"{layer}.") for name in later for layer in step.layers):
                _write(shards, new, [f"{layer}." for layer in step.layers])

        taken(new, plan.steps, statistics, put)
        _write(shards, new, [""])
        shards.finish()
        (path / PLAN).write_text(plan.dumps(), encoding="utf-8")


def _write(shards: Shards, model: nn.Module, prefixes: Sequence[str]) -> None:
    """Write what the model holds under these prefixes and is not written yet: what is, is on the meta device."""
    for names, tensor in tensors_of(model):
        if not tensor.is_meta and names[0].startswith(tuple(prefixes)):
            shards.add({names[0]: tensor})
            put_tensor(model, names, without_values(tensor))
