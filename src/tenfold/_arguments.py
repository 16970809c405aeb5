"""What may be written on the command line, and what it means."""

from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tenfold._batches import IMAGENET
from tenfold._budget import Budget
from tenfold._candidates import Target
from tenfold._errors import TenfoldError
from tenfold._given import METHODS, batches_for, shaped
from tenfold._rank_rules import Energy
from tenfold._sources import named

Model = Annotated[
    str,
    typer.Argument(
        help="package.module:callable, timm:NAME, torchvision:NAME or transformers:CONFIG.", metavar="MODEL"
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help=".safetensors, .pt with a plain state dict, or a folder of shards.", metavar="FILE"),
]
Input = Annotated[
    list[str] | None,
    typer.Option(help="Shape of the input: 1,3,32,32, or NAME:DTYPE:1,128, once for each.", metavar="SHAPE"),
]
Example = Annotated[str | None, typer.Option(help="module:fn that returns an example input.", metavar="FN")]
Methods = Annotated[str, typer.Option(help=f"Which compete: {','.join(METHODS)}.", metavar="NAMES")]
Freeze = Annotated[
    list[str] | None, typer.Option(help="Layers to leave dense: head or 'blocks.0.*'.", metavar="PATTERN")
]
Params = Annotated[
    str | None, typer.Option(help="At most so many parameters: 0.5, 50%, 250000, 1.2M.", metavar="LIMIT")
]
Macs = Annotated[str | None, typer.Option(help="At most so many multiply-adds, likewise.", metavar="LIMIT")]
Bytes = Annotated[str | None, typer.Option("--bytes", help="At most so many bytes, likewise.", metavar="LIMIT")]
Latency = Annotated[str | None, typer.Option(help="At most this share of the dense time: 0.5, 50%.", metavar="SHARE")]
LatencyMs = Annotated[float | None, typer.Option("--latency-ms", help="At most so many milliseconds.", metavar="MS")]
Guard = Annotated[bool, typer.Option("--guard", help="Replace only by what is measurably faster.")]
InEngine = Annotated[
    str, typer.Option("--engine", help="Where times are measured: eager, compile or onnxruntime.", metavar="NAME")
]
TimesFile = Annotated[
    Path | None, typer.Option("--times", help="Times that `tenfold profile` took elsewhere.", metavar="FILE")
]
Threads = Annotated[int | None, typer.Option(help="Of the processor, for this run.", metavar="N")]
MaxDrop = Annotated[
    float | None, typer.Option(help="The smallest network whose --evaluate falls by no more.", metavar="DROP")
]
Work = Annotated[
    Path | None,
    typer.Option(help="Keep finished work here, to go on with; else OUT.work while it runs.", metavar="FOLDER"),
]
Kept = Annotated[float | None, typer.Option(help="Keep this share of each weight's energy instead.", metavar="SHARE")]
Data = Annotated[
    str | None,
    typer.Option(help="Training data: parquet:FILES, imagefolder:DIR or module:callable.", metavar="DATA"),
]
Calibration = Annotated[int, typer.Option(help="How many examples of the data to use.", metavar="N")]
Mean = Annotated[str, typer.Option(help="Mean of each channel, taken off images in [0, 1].", metavar="NUMBERS")]
Std = Annotated[str, typer.Option(help="Standard deviation of each channel.", metavar="NUMBERS")]
Recover = Annotated[str, typer.Option(help="With data: refit, blocks, auto or none.", metavar="HOW")]
Evaluate = Annotated[
    str | None,
    typer.Option(help="module:fn; fn(model) returns a number, or one an example; higher is better.", metavar="FN"),
]
Cluster = Annotated[
    str | None,
    typer.Option("--ray", help="Spread the work: auto, local, or the address of a Ray cluster.", metavar="ADDRESS"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...", metavar="DEVICE")]
Saved = Annotated[Path, typer.Argument(help="What `tenfold compress` wrote.", metavar="FOLDER")]
Dense = Annotated[str | None, typer.Option(help="The dense network, if not the folder's own.", metavar="MODEL")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

MEAN, STD = (",".join(map(str, values)) for values in IMAGENET)


def amount(text: str) -> float | int:
    """Read a limit: `0.5` and `50%` are shares, `250000` and `1.2M` absolute; a bare `1` could be either.

    Raises:
        TenfoldError: if it is neither.
    """
    digits, suffix = (text[:-1], text[-1]) if text[-1:] in tuple("%KMGkmg") else (text, "")
    try:
        number = float(digits)
    except ValueError:
        number = nan
    if not isfinite(number):
        raise TenfoldError(f'"{text}" is no limit; write 0.5 or 50% for a share, 250000 or 1.2M for a number.')
    if text == "1":
        raise TenfoldError('"1" could be a share or a number; write 100% for all of the dense model.')
    if suffix == "%":
        return number / 100
    if suffix:
        return round(number * {"k": 1e3, "m": 1e6, "g": 1e9}[suffix.lower()])
    return number if "." in text else int(number)


def target_of(
    params: str | None,
    macs: str | None,
    stored: str | None,
    energy: float | None,
    max_drop: float | None,
    latency: str | None,
    latency_ms: float | None,
) -> Target:
    """The target that limits on the command line make.

    Raises:
        TenfoldError: if there is none, or --energy beside others.
    """
    texts = {"params": params, "macs": macs, "bytes": stored, "latency": latency}
    given: dict[str, Any] = {name: amount(text) for name, text in texts.items() if text is not None}
    numbers = {"max_drop": max_drop, "latency_ms": latency_ms}
    limits = given | {name: number for name, number in numbers.items() if number is not None}
    if bool(limits) == (energy is not None):
        raise TenfoldError(
            "give a target: one or more of --params, --macs, --bytes, --latency, --latency-ms and --max-drop, or "
            "--energy alone."
        )
    return Energy(energy) if energy is not None else Budget(**limits)


def example_of(inputs: Sequence[str] | None, example: str | None) -> Any:
    """The example input, of a shape or from a function.

    Raises:
        TenfoldError: unless exactly one of them is given.
    """
    if bool(inputs) == (example is not None):
        raise TenfoldError("give the input's shape: --input 1,3,32,32, or --example module:fn.")
    return named(example)() if example else shaped(inputs or ())


def data_of(data: str | None, count: int, inputs: Any, mean: str, std: str) -> list[Any] | None:
    """The batches of `--data`, with so many examples, like the inputs; None without it."""
    return None if data is None else batches_for(data, count, inputs, _numbers(mean), _numbers(std))


def use_threads(count: int | None) -> None:
    """Let torch use so many threads from now on.

    Raises:
        TenfoldError: if that is less than one.
    """
    if count is not None:
        if count < 1:
            raise TenfoldError(f"--threads {count}: a number of threads is 1 or more.")
        torch.set_num_threads(count)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise TenfoldError(f'"{text}" is no list of numbers; write 0.5,0.5,0.5.') from None
