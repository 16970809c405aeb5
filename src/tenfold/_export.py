"""Export: one file that runs without this package and without the network's class."""

import io
import json
import logging
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from tenfold._data import Inputs, example_inputs, tensors
from tenfold._errors import TenfoldError, first_line
from tenfold._folding import fold_norms
from tenfold._onnx_layers import write_onnx
from tenfold._plan import Record
from tenfold._resume import refuse_folder
from tenfold._run import copied, forward, same_draws, undisturbed, unwrapped

_log = logging.getLogger(__name__)
_DRAWS = "The model draws random numbers, and the file may draw others: export to .pt2, which draws the same."

Run = Callable[[Inputs], list[Tensor]]  # a file, loaded again: inputs to tensors


class Exported(Record):
    """What was written, and how far its outputs are from the model's."""

    file: str
    any_batch: bool  # whether it takes batches of any size, or that of the example alone
    folded: int  # norms that were folded into the layer before them
    relative: float  # ||file - model|| / ||model||, the worst over the example, random inputs and other batch sizes
    worst: float  # the largest absolute difference of one number


def export(model: nn.Module, example: Any, path: str | Path) -> Exported:
    """Write `model` as `.onnx`, or as `.pt2` (`torch.export`), for batches of any size where the model allows it.

    Batch norms are folded into the layers before them. The file is loaded again, ONNX files in ONNX Runtime, and
    compared with the model before it takes its name; random inputs have the shapes, mean and deviation of the
    example's.

    Args:
        model: any network; it is not modified, and exported as it runs in eval mode on a CPU.
        example: a tensor, a tuple (positional arguments) or a dict (keyword arguments). A batch of one will do.
        path: where to; its ending says what.

    Raises:
        TenfoldError: if the ending is another, the example is sparse, the model cannot be exported, or the file's
            outputs differ from the model's by more than rounding.
    """
    path = Path(path)
    formats: dict[str, Callable[[ExportedProgram, Path], Run]] = {".onnx": _onnx, ".pt2": _pt2}
    if path.suffix not in formats:
        raise TenfoldError(f"{path} ends in {path.suffix!r}; name it .onnx or .pt2.")
    refuse_folder(path)
    model = copied(unwrapped(model)).cpu()
    inputs = example_inputs(example).on(torch.device("cpu"))
    if odd := [tensor.layout for tensor in tensors(inputs) if tensor.layout is not torch.strided]:
        raise TenfoldError(f"export takes tensors with values at every place, and the example has one of {odd[0]}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with undisturbed(model):
        for any_batch in (True, False):
            program, folded = _program(model, inputs, any_batch)
            if program is None:
                continue
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
                run = formats[path.suffix](program, Path(folder) / path.name)
                if any_batch and not _takes(run, _resized(inputs, 3)):
                    continue
                trials = [inputs, _random(inputs), *([_random(_resized(inputs, 3))] * any_batch)]
                relative, worst = _compared(model, run, trials)
                for file in Path(folder).iterdir():  # weights beyond 2 GB lie in a file beside
                    file.replace(path.parent / file.name)
            break
    return Exported(file=str(path), any_batch=any_batch, folded=folded, relative=relative, worst=worst)


def _program(model: nn.Module, inputs: Inputs, any_batch: bool) -> tuple[ExportedProgram | None, int]:
    """The exported model, norms folded, and how many; None where it should take any batch size but cannot."""
    if not any_batch:
        return _lean(model, inputs, None)
    inputs = _resized(inputs, 2)  # torch.export takes a batch of one for a constant
    try:
        forward(model, inputs)
    except TenfoldError as error:
        _log.info("the batch size is fixed, because %s", error)
        return None, 0
    shapes = ShapesCollection()
    for tensor in _with_batch(inputs):
        shapes[tensor] = {0: Dim.AUTO}
    program, folded = _lean(model, inputs, shapes)
    sizes = [
        node.meta["val"].shape[:1] for node in program.graph.nodes if node.name in program.graph_signature.user_inputs
    ]
    if not any(isinstance(size, torch.SymInt) for shape in sizes for size in shape):
        _log.info("the batch size is fixed by what the model does with it")
        return None, 0
    return program, folded


def _lean(model: nn.Module, inputs: Inputs, shapes: Any) -> tuple[ExportedProgram, int]:
    def exported(model: nn.Module) -> ExportedProgram:
        return torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=shapes)

    try:
        program, lean = exported(model), copied(model)
        folded = fold_norms(lean, program)
        return (exported(lean) if folded else program), folded
    except Exception as error:
        raise TenfoldError(f"torch.export cannot export this model: {first_line(error)}") from error


def _onnx(program: ExportedProgram, path: Path) -> Run:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise TenfoldError(f"ONNX export needs {error.name}; pip install tenfold[export].") from None
    write_onnx(program, path)
    _forget_shapes_of_weights(onnx, path)
    try:
        onnx.checker.check_model(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # both raise errors of their own kinds
        raise TenfoldError(f"torch.onnx made a file of this model that is not valid: {first_line(error)}") from error
    names = [put.name for put in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        arrays = [tensor.numpy() for tensor in tensors(inputs)]
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True)))]

    return run


def _forget_shapes_of_weights(onnx: Any, path: Path) -> None:
    # Stated twice, they stop ONNX Runtime's quantiser, which transposes weights and leaves the second statement.
    model = onnx.load(path, load_external_data=False)
    weights = {weight.name for weight in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    onnx.save(model, path)


def _pt2(program: ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    return lambda inputs: tensors(loaded(*inputs.args, **inputs.kwargs))


def load_pt2(path: Path) -> nn.Module:
    """The model in a `.pt2` that `export` wrote.

    Raises:
        TenfoldError: if it is damaged, or holds pickles, which torch.export.load would run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_pickles(archive)
        return torch.export.load(path).module()
    except Exception as error:
        raise TenfoldError(f"{path} cannot be loaded: {first_line(error)}") from error


def _refuse_pickles(archive: zipfile.ZipFile) -> None:
    tensor = re.compile(r"(weight|tensor)_\d+")
    for member in archive.namelist():
        _, _, name = member.partition("/")
        if name.startswith("data/sample_inputs/"):
            torch.load(io.BytesIO(archive.read(member)), weights_only=True)
        elif name.endswith("_config.json"):
            payloads = json.loads(archive.read(member))["config"].values()
            if any(payload["use_pickle"] or not tensor.fullmatch(payload["path_name"]) for payload in payloads):
                raise TenfoldError("it holds pickles, which could run anything; it was not written by this package.")
        elif name.startswith("data/") and not tensor.fullmatch(name.rpartition("/")[2]):
            raise TenfoldError(f"it holds {name}, which this package does not write.")


def _compared(model: nn.Module, run: Run, trials: Iterable[Inputs]) -> tuple[float, float]:
    relative, worst = 0.0, 0.0
    for inputs in trials:
        with same_draws():
            expected = tensors(forward(model, inputs))
        found = run(inputs)
        if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
            raise TenfoldError("the exported file gives outputs of other shapes than the model.")
        for before, after in zip(expected, found, strict=True):
            difference = (after.double() - before.double()).abs()
            if difference.numel():
                worst = max(worst, float(difference.max()))
                relative = max(relative, float(difference.norm() / before.double().norm().clamp_min(1e-30)))
        limit = max((1e3 * torch.finfo(t.dtype).eps for t in expected if t.is_floating_point()), default=0.0)
        if not relative <= max(limit, 1e-4):
            draws = not all(map(torch.equal, *(tensors(forward(model, inputs)) for _ in range(2))))
            raise TenfoldError(
                f"the exported file differs from the model by {relative:.2g} of the output's norm ({worst:.2g} at "
                f"most); it was not kept. {_DRAWS if draws else 'Export to the other format, or report this.'}"
            )
    return relative, worst


def _takes(run: Run, inputs: Inputs) -> bool:
    try:
        run(inputs)
    except Exception as error:  # noqa: BLE001  every runtime has classes of its own for this
        _log.info("the batch size is fixed in the file: %s", first_line(error))
        return False
    return True


def _resized(inputs: Inputs, size: int) -> Inputs:
    batch = [id(tensor) for tensor in _with_batch(inputs)]

    def resize(leaf: Any) -> Any:
        if id(leaf) not in batch:
            return leaf
        return leaf[torch.arange(size) % len(leaf)]

    return pytree.tree_map(resize, inputs)


def _with_batch(inputs: Inputs) -> list[Tensor]:
    """The tensors whose first dimension is the batch: as long as that of the first tensor."""
    found = [tensor for tensor in tensors(inputs) if tensor.dim()]
    return [tensor for tensor in found if len(tensor) == len(found[0])]


def _random(inputs: Inputs) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def drawn(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.numel() < 2:
            return leaf
        values = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        return (values * leaf.double().std() + leaf.double().mean()).to(leaf.dtype)

    return pytree.tree_map(drawn, inputs)
