"""Proof: the small model beside the dense one, on the same inputs."""

import platform
import re
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold._cost import Cost, measure
from tenfold._data import Inputs, as_real, batches_of, example_inputs, tensors
from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._judge import Evaluate, Trial, interval, interval_text, scores
from tenfold._latency import interleaved_ms
from tenfold._pair import changed
from tenfold._plan import Record
from tenfold._predicted import Predicted
from tenfold._progress import track
from tenfold._run import device_of, forward, same_draws, undisturbed, unwrapped
from tenfold._timed import Timed
from tenfold._version import __version__

_UNITS = {
    "params": "parameters",
    "macs": "multiply-adds",
    "bytes": "bytes",
    "activation_bytes": "peak activation bytes",
}
_NUMBERS = re.compile(r"\[\n([\s\d.,eE+-]+)\]")


class Drift(Record):
    """How far the floating-point outputs moved, over all batches."""

    relative: float  # ||small - dense|| / ||dense||
    worst: float  # the largest absolute difference of one number
    batches: int


class Metric(Record):
    """What `evaluate` returned, in the mean over examples; higher is better."""

    dense: float
    small: float
    interval: tuple[float, float] | None = None  # 95 %, of small - dense; where there is a score for each example


class Replaced(Record):
    """A layer that was replaced, or lost filters or what it read of them: its parameters before and after."""

    layer: str
    factors: tuple[tuple[int, ...], ...]  # the shapes of the factors' weights, in order; of one weight if it lost some
    params: int
    dense_params: int
    cancellation: float | None  # of a CP chain: summed squared norms of its terms over that of the weight; 1 is best


class Epoch(Record):
    """What an epoch of training came to."""

    epoch: int
    loss: float  # the mean over its steps, on the first process
    metric: float | None  # on what is held back, of the weights that would be returned; None if nothing is
    seconds: float  # of its steps, on the first process


class Report(Record):
    """What compression did: cost before and after, drift, metric, and every layer's fate. As text: before and after."""

    dense: Cost
    small: Cost
    drift: Drift
    metric: Metric | None = None
    timed: Timed | None = None  # beside dense in the engine that was planned for, where times were planned
    trials: tuple[Trial, ...] = ()  # networks that were tried for `max_drop`, the smallest first
    replaced: tuple[Replaced, ...] = ()
    left_dense: dict[str, str] = Field(default_factory=dict)  # layer: why
    predicted: Predicted | None = None  # what the options had said; None where they are not at hand
    history: tuple[tuple[Epoch, ...], ...] = ()  # of training, round by round
    asked: str | None = None  # the target
    command: str | None = None  # the line that made it, where that was a command line
    seed: int | None = None
    device: str
    python_version: str = Field(default_factory=platform.python_version)
    platform: str = Field(default_factory=platform.platform)
    torch_version: str
    version: str = __version__

    def __str__(self) -> str:
        table = [("", "dense", "small", "small / dense"), *self.lines()]
        first, *rest = [max(map(len, column)) for column in zip(*table, strict=True)]
        texts = [
            what.ljust(first) + "".join(f"  {cell:>{most}}" for cell, most in zip(cells, rest, strict=True))
            for what, *cells in table
        ]
        return "\n".join(text.rstrip() for text in texts)

    def lines(self, metric: str = "metric") -> list[tuple[str, str, str, str]]:
        """Before and after: what, dense, small, and small / dense or the change."""
        found = []
        for name, unit in _UNITS.items():
            before, after = getattr(self.dense, name), getattr(self.small, name)
            found.append((unit, f"{before:,}", f"{after:,}", f"{after / max(before, 1):.3f}"))
        if self.timed is not None:
            found.append(_timed_line(self.timed))
        beside = self.timed is not None and self.timed.small_ms is not None  # each other, in the asked engine
        if self.dense.milliseconds and self.small.milliseconds and not beside:
            before, after = self.dense.milliseconds, self.small.milliseconds
            found.append(("ms", f"{before:.2f}", f"{after:.2f}", f"{after / before:.3f}"))
        if self.metric is not None:
            before, after = self.metric.dense, self.metric.small
            found.append((metric, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"))
        if self.metric is not None and self.metric.interval:
            found.append(("95 % interval of its change", "", interval_text(self.metric.interval), ""))
        return [*found, ("relative drift of the outputs", "", f"{self.drift.relative:.4g}", "")]

    def dumps(self) -> str:
        """JSON, indented; numbers of one list stand on one line."""
        text = self.model_dump_json(indent=2)
        return _NUMBERS.sub(lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def _timed_line(timed: Timed) -> tuple[str, str, str, str]:
    planned = "" if timed.predicted is None else f" (planned: {timed.predicted:.3f})"
    small_ms = "" if timed.small_ms is None else f"{timed.small_ms:.2f}"
    ratio = "" if timed.measured is None else f"{timed.measured:.3f}"
    return f"ms, {timed.conditions.engine}{planned}", f"{timed.dense_ms:.2f}", small_ms, ratio


def verify(small: nn.Module, dense: nn.Module, batches: Iterable[Any], *, evaluate: Evaluate | None = None) -> Report:
    """Compare outputs on every batch, costs and times on the first one, and the metric if `evaluate` is given.

    Times are medians of interleaved runs. Neither model is modified.

    Raises:
        TenfoldError: if a model fails on a batch, there are no batches, the outputs differ in form, or `evaluate`
            returns no number.
    """
    return verified(small, dense, batches, evaluate=evaluate)


def verified(
    small: nn.Module, dense: nn.Module, batches: Iterable[Any], *, example: Any = None, evaluate: Evaluate | None = None
) -> Report:
    """`verify`, with costs and times on an example, if there is one, instead of the first batch."""
    small, dense = unwrapped(small), unwrapped(dense)
    drift, first = drift_of(small, dense, batches)
    costs = _costs(small, dense, first if example is None else example_inputs(example))
    return Report(
        dense=costs[1],
        small=costs[0],
        drift=drift,
        metric=None if evaluate is None else evaluated(small, dense, evaluate),
        replaced=tuple(_replaced(small, dense)),
        device=ran_on(device_of(small)),
        torch_version=torch.__version__,
    )


def drift_of(small: nn.Module, dense: nn.Module, batches: Iterable[Any]) -> tuple[Drift, Inputs]:
    """How far the outputs moved, and the inputs of the first batch. Dense outputs that are not finite count nothing.

    Raises:
        TenfoldError: if small outputs are not finite where the dense ones are, or they differ in form.
    """
    total, moved, worst, count, first = 0.0, 0.0, 0.0, 0, None
    with undisturbed(small), undisturbed(dense):
        for inputs in track(batches_of(dense, batches), "outputs"):
            first, count = first or inputs, count + 1
            for before, after in _paired_outputs(dense, small, inputs):
                known = before.isfinite()
                before, after = before[known].double(), after[known].double()
                _refuse_lost(after)
                difference = (after - before).abs()
                total += float(before.square().sum())
                moved += float(difference.square().sum())
                worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
    assert first is not None, "batches_of refuses empty data"
    return Drift(relative=(moved / total) ** 0.5 if total else float(moved > 0), worst=worst, batches=count), first


def _refuse_lost(outputs: Tensor) -> None:
    if lost := int((~outputs.isfinite()).sum()):
        raise TenfoldError(
            f"{lost:,} of {outputs.numel():,} outputs of the small network are NaN or infinite where the dense ones "
            "are not: look at its weights, or compress in float32."
        )


def _paired_outputs(dense: nn.Module, small: nn.Module, inputs: Inputs) -> Iterable[tuple[Tensor, Tensor]]:
    with same_draws():
        wanted = forward(dense, inputs)
    outputs = [[*map(as_real, tensors(given))] for given in (wanted, forward(small, inputs))]
    before, after = ([t for t in all_ if t.is_floating_point()] or all_ for all_ in outputs)
    if [t.shape for t in before] != [t.shape for t in after]:
        raise TenfoldError(
            f"the outputs differ in form: {[tuple(t.shape) for t in before]} dense, "
            f"{[tuple(t.shape) for t in after]} small; give the network that was compressed."
        )
    return zip(before, after, strict=True)


def _costs(small: nn.Module, dense: nn.Module, inputs: Inputs) -> list[Cost]:
    example: Any = inputs.args or inputs.kwargs
    moved = inputs.on(device_of(dense))
    models = (small, dense)
    with undisturbed(small), undisturbed(dense):
        times = interleaved_ms([lambda m=m: m(*moved.args, **moved.kwargs) for m in models])  # type: ignore[misc]
    pairs = zip(models, times, strict=True)
    return [measure(model, example).model_copy(update={"milliseconds": ms}) for model, ms in pairs]


def evaluated(small: nn.Module, dense: nn.Module, evaluate: Evaluate) -> Metric:
    """What `evaluate` says of both."""
    before, after = scores(evaluate, dense), scores(evaluate, small)
    return Metric(dense=float(before.mean()), small=float(after.mean()), interval=interval(after, before))


def _replaced(small: nn.Module, dense: nn.Module) -> Iterable[Replaced]:
    counted: set[nn.Parameter] = set()  # what layers share counts for the first of them
    names = set(changed(small, dense))
    for name, module in small.named_modules():
        if name in names and not isinstance(module, _BatchNorm):
            weights = [p for inside, p in module.named_parameters() if not inside.endswith("bias")]
            yield Replaced(
                layer=name,
                factors=tuple(tuple(weight.shape) for weight in weights),
                params=sum(p.numel() for p in module.parameters() if p not in counted),
                dense_params=sum(p.numel() for p in dense.get_submodule(name).parameters()),
                cancellation=module.cancellation() if isinstance(module, Factored) else None,
            )
            counted.update(module.parameters())


def ran_on(device: torch.device) -> str:
    """What runs there, as a person calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
