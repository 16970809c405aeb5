"""The command line: `tenfold demo | inspect | plan | compress | profile | train | sweep | verify | report | export`."""

import json
import shlex
import sys
import time
import warnings
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import nn

from tenfold import _tables
from tenfold import report as pages
from tenfold._batches import IMAGENET, collated, read_examples
from tenfold._budget import Budget
from tenfold._calibrate import calibrate
from tenfold._candidates import Options, Target, check_evaluate, options
from tenfold._compress import asked, carry_into, carry_out, check_recovery
from tenfold._demo import run_demo
from tenfold._engines import check_engine
from tenfold._errors import TenfoldError, TenfoldWarning
from tenfold._export import export
from tenfold._given import METHODS, USUAL, batches_for, device_named, lies_in_shards, methods_named, network, shaped
from tenfold._kit import write_kit
from tenfold._plan import Plan
from tenfold._progress import listening
from tenfold._rank_rules import Energy
from tenfold._resume import forget, refuse_folder, resumable, write_text
from tenfold._sources import build_model, named
from tenfold._store import load, load_plan, refuse_taken, save
from tenfold._sweep import PAGE, ROWS, WORK, run_sweep
from tenfold._sweep_setting import Sweep
from tenfold._times import Profile
from tenfold._verify import verified
from tenfold._version import __version__
from tenfold._workers import processes, workers
from tenfold.report._sweep_page import sweep_page
from tenfold.train import progressive
from tenfold.train._setting import Setting

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

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

_MEAN, _STD = (",".join(map(str, values)) for values in IMAGENET)


def main() -> None:
    """Run the command line; a refusal is one line on standard error and exit status 1."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        with _progress_bars(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            app(prog_name="tenfold")
    except TenfoldError as error:
        err.print(f"tenfold: {error}", soft_wrap=True, markup=False)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        err.print(f"tenfold: {error.strerror}: {error.filename}", soft_wrap=True, markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("tenfold: interrupted; nothing was written.")
        sys.exit(130)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,  # noqa: ARG001
    line: str | None = None,
) -> None:
    ours = issubclass(category, TenfoldWarning)
    text = f"tenfold: {message}" if ours else warnings.formatwarning(message, category, filename, lineno, line).rstrip()
    err.print(text, soft_wrap=True, markup=False)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Make trained PyTorch networks several times smaller, and keep their accuracy."""
    if version:
        out.print(__version__)
        raise typer.Exit


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="The folder to leave behind.", metavar="FOLDER")] = Path(
        "digits"
    ),
) -> None:
    """Train a small network on handwritten digits and compress it tenfold.

    tenfold demo
    """
    run_demo(folder, out, _command())
    _print_page(folder)


@app.command()
def inspect(
    model: Model,
    weights: Weights = None,
    input: Input = None,
    example: Example = None,
    methods: Methods = USUAL,
    freeze: Freeze = None,
    as_json: Json = False,
) -> None:
    """Show every layer, what each method could save, and what would stay dense.

    tenfold inspect torchvision:resnet18 --input 1,3,224,224
    """
    found = _options(_model(model, weights), _example(input, example), methods, freeze)
    rows = _tables.inspected(found)
    if as_json:
        _print_json(json.dumps(rows, indent=2))
        return
    out.print(_tables.inspect_table(rows))
    out.print(f"\nIn all {found.dense.params:,} parameters, {found.dense.macs:,} multiply-adds.", soft_wrap=True)
    out.print(f"A method's column: the share of the layer's parameters left at {_tables.KEPT:.0%} of its energy.")
    _print_reasons({row["layer"]: row["stays_dense_because"] for row in rows if row["stays_dense_because"]})


@app.command()
def plan(
    model: Model,
    weights: Weights = None,
    input: Input = None,
    example: Example = None,
    params: Params = None,
    macs: Macs = None,
    bytes_: Bytes = None,
    latency: Latency = None,
    latency_ms: LatencyMs = None,
    energy: Kept = None,
    max_drop: MaxDrop = None,
    evaluate: Evaluate = None,
    methods: Methods = USUAL,
    freeze: Freeze = None,
    guard: Guard = False,
    engine: InEngine = "eager",
    times: TimesFile = None,
    threads: Threads = None,
    data: Data = None,
    calibration: Calibration = 1024,
    mean: Mean = _MEAN,
    std: Std = _STD,
    work: Work = None,
    ray: Cluster = None,
    file: Annotated[Path | None, typer.Option("--out", help="Write the plan here.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Choose methods and ranks, to read and edit before compressing.

    \b
    tenfold plan nets:make_net --weights w.pt --input 1,3,32,32 \\
        --params 0.5 --out plan.json
    """  # noqa: D301
    _use_threads(threads)
    target = _target(params, macs, bytes_, energy, max_drop, latency, latency_ms)
    if file:
        refuse_folder(file)
    score = named(evaluate) if evaluate else None
    check_evaluate(target, score)
    net, inputs = _model(model, weights), _example(input, example)
    with _working(work, file), _spread(ray):
        batches = _batches(data, calibration, inputs, mean, std)
        found = _options(net, inputs, methods, freeze, batches, guard=guard, engine=engine, times=times)
        chosen = found.plan(target, evaluate=score).model_copy(update={"reference": model})
    if file:
        write_text(file, chosen.dumps())
    if as_json:
        _print_json(chosen.dumps())
    else:
        _print_plan(found, chosen)


@app.command()
def compress(
    model: Model,
    folder: Annotated[Path, typer.Option("--out", help="The folder to write.", metavar="FOLDER")],
    weights: Weights = None,
    input: Input = None,
    example: Example = None,
    params: Params = None,
    macs: Macs = None,
    bytes_: Bytes = None,
    latency: Latency = None,
    latency_ms: LatencyMs = None,
    energy: Kept = None,
    max_drop: MaxDrop = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="Carry out this plan.", metavar="FILE")] = None,
    methods: Methods = USUAL,
    freeze: Freeze = None,
    guard: Guard = False,
    engine: InEngine = "eager",
    times: TimesFile = None,
    threads: Threads = None,
    data: Data = None,
    calibration: Calibration = 1024,
    mean: Mean = _MEAN,
    std: Std = _STD,
    recover: Recover = "auto",
    evaluate: Evaluate = None,
    device: Device = "cpu",
    work: Work = None,
    ray: Cluster = None,
    as_json: Json = False,
) -> None:
    """Make a network smaller and leave it in a folder.

    \b
    tenfold compress nets:make_net --weights w.pt --input 1,3,32,32 \\
        --params 0.5 --out small
    """  # noqa: D301
    _use_threads(threads)
    refuse_taken(folder)
    limits = (params, macs, bytes_, energy, max_drop, latency, latency_ms)
    if plan_file and (guard or freeze or any(limit is not None for limit in limits)):
        raise TenfoldError("--plan says what is replaced; give it without a target, --guard and --freeze.")
    target = load_plan(plan_file) if plan_file else _target(*limits)
    score = named(evaluate) if evaluate else None
    if isinstance(target, Target):
        check_evaluate(target, score)
    net, inputs = _model(model, weights).to(device_named(device)), _example(input, example)
    batches = _batches(data, calibration, inputs, mean, std)
    check_recovery(batches, recover)
    with _working(work, folder), _spread(ray):
        found = _options(net, inputs, methods, freeze, batches, guard=guard, engine=engine, times=times)
        task: dict[str, Any] = {"example": inputs, "calibration": batches, "evaluate": score, "command": _command()}
        if lies_in_shards(weights):
            result = carry_into(folder, target, found, **task, how=recover, reference=model)
        else:
            result = carry_out(target, found, **task, how=recover)
            save(folder, result.model, result.plan.model_copy(update={"reference": model}), result.report)
    if as_json:
        _print_json(result.report.dumps())
        return
    _print_plan(found, result.plan)
    out.print()
    if result.report.trials:
        out.print(_tables.trials_table(result.report))
        out.print()
    out.print(_tables.report_table(result.report))
    out.print(f"\nWritten to {folder}: weights, plan.json, report.json.", soft_wrap=True)
    _print_page(folder)


@app.command()
def profile(
    model: Model,
    file: Annotated[Path, typer.Option("--out", help="The kit to write, one file.", metavar="FILE")],
    weights: Weights = None,
    input: Input = None,
    example: Example = None,
    methods: Methods = USUAL,
    freeze: Freeze = None,
    engine: Annotated[str, typer.Option(help="What runs there: onnxruntime or eager.", metavar="NAME")] = "onnxruntime",
) -> None:
    """Write a kit that times a network's options on another machine.

    \b
    tenfold profile nets:make_net --weights w.pt --input 1,3,32,32 \\
        --out kit.pyz
    """  # noqa: D301
    found = _options(_model(model, weights), _example(input, example), methods, freeze, engine=engine)
    count = write_kit(found, file)
    out.print(
        f"{file} times {count} layers and options; it needs Python and {'torch' if engine == 'eager' else engine}. "
        f"Copy it to the machine, and there:\n\n  python {file.name} times.json --threads 1\n\nThen plan with it here, "
        "with the same model, input and methods:\n\n  tenfold plan ... --latency 0.5 --times times.json",
        soft_wrap=True,
    )


@app.command()
def train(
    setting_file: Annotated[Path, typer.Argument(help="A .toml file, or setting.json of a run.", metavar="SETTING")],
    folder: Annotated[Path, typer.Option("--out", help="The folder to write.", metavar="FOLDER")],
    work: Work = None,
    as_json: Json = False,
) -> None:
    """Compress and fine-tune in rounds, as a file says.

    tenfold train setting.toml --out small
    """
    setting = Setting.read(setting_file)
    refuse_taken(folder)
    score = named(setting.evaluate) if setting.evaluate else None
    net, inputs = (
        network(setting.model, Path(setting.weights)).to(device_named(setting.device)),
        shaped([setting.input]),
    )
    examples = read_examples(setting.data, tuple(inputs.shape[1:]), setting.mean, setting.std)
    calibration = collated(examples, setting.calibration)
    with _working(work, folder) as place:
        done = progressive(
            net,
            setting.rounds,
            examples,
            example=inputs,
            calibration=calibration,
            methods=methods_named(setting.methods),
            freeze=setting.freeze,
            augment=setting.augment,
            evaluate=score,
            folder=place,
        )
        facts: dict[str, Any] = {"history": done.history, "left_dense": done.left_dense, "predicted": done.predicted}
        last = setting.rounds[-1]
        facts |= {"asked": asked(last.budget), "seed": last.recipe.seed, "command": _command()}
        report = verified(done.model, net, calibration, example=inputs, evaluate=score).model_copy(update=facts)
        save(folder, done.model, done.plan.model_copy(update={"reference": setting.model}), report, setting)
    if as_json:
        _print_json(report.dumps())
        return
    out.print(_tables.history_table(done.history))
    out.print()
    out.print(_tables.report_table(report))
    out.print(f"\nWritten to {folder}: model.safetensors, plan.json, report.json, setting.json.", soft_wrap=True)
    _print_page(folder)


@app.command()
def sweep(
    setting_file: Annotated[Path, typer.Argument(help="A .toml file, or setting.json of a sweep.", metavar="SWEEP")],
    folder: Annotated[Path, typer.Option("--out", help="The folder to write, or to go on with.", metavar="FOLDER")],
    jobs: Annotated[int, typer.Option(help="Processes that share the work.", metavar="N", min=1)] = 1,
    threads: Annotated[int | None, typer.Option(help="Of each; else they share the processor.", metavar="N")] = None,
    ray: Cluster = None,
    as_json: Json = False,
) -> None:
    """Compare methods and budgets on several networks, as a file says.

    tenfold sweep sweep.toml --out swept
    """
    setting = Sweep.read(setting_file)
    if setting.is_timed and (jobs > 1 or ray):
        raise TenfoldError("limits of time and the guard are measured while planning; leave out --jobs and --ray.")
    _use_threads(threads or max(1, torch.get_num_threads() // jobs))
    with _working(folder / WORK, folder), processes(jobs), _spread(ray):
        rows = run_sweep(setting, folder)
    write_text(folder / PAGE, sweep_page(rows, setting))
    if as_json:
        _print_json(json.dumps([row.model_dump() for row in rows], indent=2))
        return
    out.print(_tables.sweep_table(rows))
    out.print(f"\nWritten to {folder}: {ROWS}, {PAGE}, setting.json, plans.", soft_wrap=True)


@app.command(name="verify")
def verify_folder(
    folder: Saved,
    weights: Annotated[Path, typer.Option(help="The dense weights.", metavar="FILE")],
    model: Dense = None,
    input: Input = None,
    example: Example = None,
    data: Data = None,
    calibration: Calibration = 1024,
    mean: Mean = _MEAN,
    std: Std = _STD,
    evaluate: Evaluate = None,
    as_json: Json = False,
) -> None:
    """Compare a compressed network with its dense one: cost, drift, metric.

    tenfold verify small --weights w.pt --input 1,3,32,32
    """
    reference = model or load_plan(folder / "plan.json").reference
    if reference is None:
        raise TenfoldError(f"{folder} does not say how to build the network; give it with --model.")
    score = named(evaluate) if evaluate else None
    dense, inputs = _model(reference, weights), _example(input, example)
    batches = _batches(data, calibration, inputs, mean, std) or [inputs]
    report = verified(load(folder, dense), dense, batches, example=inputs, evaluate=score)
    if as_json:
        _print_json(report.dumps())
    else:
        out.print(_tables.report_table(report))


@app.command(name="report")
def report_folder(
    folder: Saved,
    file: Annotated[
        Path | None, typer.Option("--out", help="Write the page here, not into the folder.", metavar="FILE")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Make a page about a compressed network: report.html, and report.md.

    tenfold report small --open
    """
    page = pages.write(folder, file)
    short = "" if file else f", and in short {page.with_suffix('.md')}"
    out.print(f"Written: {page}{short}.", soft_wrap=True)
    if show:
        webbrowser.open(page.absolute().as_uri())


@app.command(name="export")
def export_folder(
    folder: Saved,
    file: Annotated[Path, typer.Argument(help="What to write: .onnx or .pt2.", metavar="FILE")],
    model: Dense = None,
    input: Input = None,
    example: Example = None,
    as_json: Json = False,
) -> None:
    """Write a compressed network as one file that runs elsewhere.

    tenfold export small small.onnx --input 1,3,32,32
    """
    small = load(folder, build_model(model) if model else None)
    done = export(small, _example(input, example), file)
    if as_json:
        _print_json(done.model_dump_json(indent=2))
        return
    batches = "batches of any size" if done.any_batch else "batches of the given size only"
    out.print(f"Written to {done.file}, for {batches}; norms folded: {done.folded}.", soft_wrap=True)
    out.print(f"Its outputs differ from the network's by {done.relative:.2g} of their norm, {done.worst:.2g} at most.")


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


def _target(
    params: str | None,
    macs: str | None,
    stored: str | None,
    energy: float | None,
    max_drop: float | None,
    latency: str | None,
    latency_ms: float | None,
) -> Target:
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


@contextmanager
def _working(work: Path | None, output: Path | None) -> Iterator[Path | None]:
    """Keep finished work, for the same command to go on with; unless `work` is given, beside the output till done."""
    place = work or (output.with_name(f"{output.name}.work") if output else None)
    if place is None:
        yield None
        return
    stopped = True
    try:
        with resumable(place):
            yield place
        stopped = False
    except TenfoldError:
        stopped = False
        raise
    except KeyboardInterrupt:
        text = f"tenfold: interrupted; finished work is in {place}: the same command goes on from there."
        err.print(text, soft_wrap=True)
        sys.exit(130)
    finally:
        if work is None and not stopped:
            forget(place)


def _spread(address: str | None) -> AbstractContextManager[None]:
    return nullcontext() if address is None else workers(address)


def _model(reference: str, weights: Path | None) -> nn.Module:
    if weights is None:
        err.print("tenfold: no --weights given; the network keeps those that its code gives it.", soft_wrap=True)
    return network(reference, weights)


def _example(inputs: Sequence[str] | None, example: str | None) -> Any:
    if bool(inputs) == (example is not None):
        raise TenfoldError("give the input's shape: --input 1,3,32,32, or --example module:fn.")
    return named(example)() if example else shaped(inputs or ())


def _batches(data: str | None, count: int, inputs: Any, mean: str, std: str) -> list[Any] | None:
    return None if data is None else batches_for(data, count, inputs, _numbers(mean), _numbers(std))


def _use_threads(count: int | None) -> None:
    if count is not None:
        if count < 1:
            raise TenfoldError(f"--threads {count}: a number of threads is 1 or more.")
        torch.set_num_threads(count)


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise TenfoldError(f'"{text}" is no list of numbers; write 0.5,0.5,0.5.') from None


def _options(
    model: nn.Module,
    example: Any,
    methods: str,
    freeze: Sequence[str] | None,
    batches: Iterable[Any] | None = None,
    *,
    guard: bool = False,
    engine: str = "eager",
    times: Path | None = None,
) -> Options:
    chosen, how = methods_named(methods), check_engine(engine) if times is None else Profile.load(times)
    statistics = None if batches is None else calibrate(model, batches)
    setting: dict[str, Any] = {"methods": chosen, "freeze": freeze or (), "guard": guard, "engine": how}
    return options(model, example=example, statistics=statistics, **setting)


def _print_plan(found: Options, chosen: Plan) -> None:
    rows = _tables.planned(found, chosen)
    out.print(_tables.plan_table(rows))
    out.print(f"\n{_tables.saved(found, rows)}", soft_wrap=True)
    _print_reasons(found.left_dense(chosen))


def _print_page(folder: Path) -> None:
    out.print(f"To look at it: tenfold report {shlex.quote(str(folder))} --open", soft_wrap=True)


def _command() -> str:
    """The command line, as it may be typed again."""
    return shlex.join(["tenfold", *sys.argv[1:]])


def _print_reasons(reasons: dict[str, str]) -> None:
    if reasons:
        out.print()
        out.print(_tables.reasons_table(reasons))


def _print_json(text: str) -> None:
    print(text.rstrip())  # noqa: T201  rich would wrap it


@contextmanager
def _progress_bars(patience_s: float = 2.0) -> Iterator[None]:
    """Bars for what takes longer than two seconds, on a terminal only, and gone when done."""
    if not err.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bars, listening(_late(bars, patience_s)):
        yield


def _late(bars: Progress, patience_s: float) -> Callable[[str, int, int | None], None]:
    started: dict[str, float] = {}
    tasks: dict[str, TaskID] = {}

    def listener(what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done == 0:
            started[what] = now
        if what not in tasks and now - started[what] > patience_s:
            tasks[what] = bars.add_task(what, total=total)
        if what in tasks:
            bars.update(tasks[what], completed=done, total=total)
            if done == total:
                bars.remove_task(tasks.pop(what))

    return listener
