"""The command line: `tenfold demo | inspect | plan | compress | profile | train | sweep | verify | report | export`."""

import json
import shlex
import sys
import warnings
import webbrowser
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import nn

from tenfold import _arguments, _tables
from tenfold import report as pages
from tenfold._bars import progress_bars
from tenfold._batches import collated, read_examples
from tenfold._calibrate import calibrate
from tenfold._candidates import Options, Target, check_evaluate, options
from tenfold._compress import asked, carry_into, carry_out, check_recovery
from tenfold._demo import run_demo
from tenfold._engines import check_engine
from tenfold._errors import TenfoldError, TenfoldWarning
from tenfold._export import export
from tenfold._given import USUAL, device_named, lies_in_shards, methods_named, network, shaped
from tenfold._kit import write_kit
from tenfold._plan import Plan
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


def main() -> None:
    """Run the command line; a refusal is one line on standard error and exit status 1."""
    sys.path.insert(0, str(Path.cwd()))
    try:
        with progress_bars(err), warnings.catch_warnings():
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
    model: _arguments.Model,
    weights: _arguments.Weights = None,
    input: _arguments.Input = None,
    example: _arguments.Example = None,
    methods: _arguments.Methods = USUAL,
    freeze: _arguments.Freeze = None,
    as_json: _arguments.Json = False,
) -> None:
    """Show every layer, what each method could save, and what would stay dense.

    tenfold inspect torchvision:resnet18 --input 1,3,224,224
    """
    found = _options(_model(model, weights), _arguments.example_of(input, example), methods, freeze)
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
    model: _arguments.Model,
    weights: _arguments.Weights = None,
    input: _arguments.Input = None,
    example: _arguments.Example = None,
    params: _arguments.Params = None,
    macs: _arguments.Macs = None,
    bytes_: _arguments.Bytes = None,
    latency: _arguments.Latency = None,
    latency_ms: _arguments.LatencyMs = None,
    energy: _arguments.Kept = None,
    max_drop: _arguments.MaxDrop = None,
    evaluate: _arguments.Evaluate = None,
    methods: _arguments.Methods = USUAL,
    freeze: _arguments.Freeze = None,
    guard: _arguments.Guard = False,
    engine: _arguments.InEngine = "eager",
    times: _arguments.TimesFile = None,
    threads: _arguments.Threads = None,
    data: _arguments.Data = None,
    calibration: _arguments.Calibration = 1024,
    mean: _arguments.Mean = _arguments.MEAN,
    std: _arguments.Std = _arguments.STD,
    work: _arguments.Work = None,
    ray: _arguments.Cluster = None,
    file: Annotated[Path | None, typer.Option("--out", help="Write the plan here.", metavar="FILE")] = None,
    as_json: _arguments.Json = False,
) -> None:
    """Choose methods and ranks, to read and edit before compressing.

    \b
    tenfold plan nets:make_net --weights w.pt --input 1,3,32,32 \\
        --params 0.5 --out plan.json
    """  # noqa: D301
    _arguments.use_threads(threads)
    target = _arguments.target_of(params, macs, bytes_, energy, max_drop, latency, latency_ms)
    if file:
        refuse_folder(file)
    score = named(evaluate) if evaluate else None
    check_evaluate(target, score)
    net, inputs = _model(model, weights), _arguments.example_of(input, example)
    with _working(work, file), _spread(ray):
        batches = _arguments.data_of(data, calibration, inputs, mean, std)
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
    model: _arguments.Model,
    folder: Annotated[Path, typer.Option("--out", help="The folder to write.", metavar="FOLDER")],
    weights: _arguments.Weights = None,
    input: _arguments.Input = None,
    example: _arguments.Example = None,
    params: _arguments.Params = None,
    macs: _arguments.Macs = None,
    bytes_: _arguments.Bytes = None,
    latency: _arguments.Latency = None,
    latency_ms: _arguments.LatencyMs = None,
    energy: _arguments.Kept = None,
    max_drop: _arguments.MaxDrop = None,
    plan_file: Annotated[Path | None, typer.Option("--plan", help="Carry out this plan.", metavar="FILE")] = None,
    methods: _arguments.Methods = USUAL,
    freeze: _arguments.Freeze = None,
    guard: _arguments.Guard = False,
    engine: _arguments.InEngine = "eager",
    times: _arguments.TimesFile = None,
    threads: _arguments.Threads = None,
    data: _arguments.Data = None,
    calibration: _arguments.Calibration = 1024,
    mean: _arguments.Mean = _arguments.MEAN,
    std: _arguments.Std = _arguments.STD,
    recover: _arguments.Recover = "auto",
    evaluate: _arguments.Evaluate = None,
    device: _arguments.Device = "cpu",
    work: _arguments.Work = None,
    ray: _arguments.Cluster = None,
    as_json: _arguments.Json = False,
) -> None:
    """Make a network smaller and leave it in a folder.

    \b
    tenfold compress nets:make_net --weights w.pt --input 1,3,32,32 \\
        --params 0.5 --out small
    """  # noqa: D301
    _arguments.use_threads(threads)
    refuse_taken(folder)
    limits = (params, macs, bytes_, energy, max_drop, latency, latency_ms)
    if plan_file and (guard or freeze or any(limit is not None for limit in limits)):
        raise TenfoldError("--plan says what is replaced; give it without a target, --guard and --freeze.")
    target = load_plan(plan_file) if plan_file else _arguments.target_of(*limits)
    score = named(evaluate) if evaluate else None
    if isinstance(target, Target):
        check_evaluate(target, score)
    net, inputs = _model(model, weights).to(device_named(device)), _arguments.example_of(input, example)
    batches = _arguments.data_of(data, calibration, inputs, mean, std)
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
    model: _arguments.Model,
    file: Annotated[Path, typer.Option("--out", help="The kit to write, one file.", metavar="FILE")],
    weights: _arguments.Weights = None,
    input: _arguments.Input = None,
    example: _arguments.Example = None,
    methods: _arguments.Methods = USUAL,
    freeze: _arguments.Freeze = None,
    engine: Annotated[str, typer.Option(help="What runs there: onnxruntime or eager.", metavar="NAME")] = "onnxruntime",
) -> None:
    """Write a kit that times a network's options on another machine.

    \b
    tenfold profile nets:make_net --weights w.pt --input 1,3,32,32 \\
        --out kit.pyz
    """  # noqa: D301
    found = _options(_model(model, weights), _arguments.example_of(input, example), methods, freeze, engine=engine)
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
    work: _arguments.Work = None,
    as_json: _arguments.Json = False,
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
    ray: _arguments.Cluster = None,
    as_json: _arguments.Json = False,
) -> None:
    """Compare methods and budgets on several networks, as a file says.

    tenfold sweep sweep.toml --out swept
    """
    setting = Sweep.read(setting_file)
    if setting.is_timed and (jobs > 1 or ray):
        raise TenfoldError("limits of time and the guard are measured while planning; leave out --jobs and --ray.")
    _arguments.use_threads(threads or max(1, torch.get_num_threads() // jobs))
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
    folder: _arguments.Saved,
    weights: Annotated[Path, typer.Option(help="The dense weights.", metavar="FILE")],
    model: _arguments.Dense = None,
    input: _arguments.Input = None,
    example: _arguments.Example = None,
    data: _arguments.Data = None,
    calibration: _arguments.Calibration = 1024,
    mean: _arguments.Mean = _arguments.MEAN,
    std: _arguments.Std = _arguments.STD,
    evaluate: _arguments.Evaluate = None,
    as_json: _arguments.Json = False,
) -> None:
    """Compare a compressed network with its dense one: cost, drift, metric.

    tenfold verify small --weights w.pt --input 1,3,32,32
    """
    reference = model or load_plan(folder / "plan.json").reference
    if reference is None:
        raise TenfoldError(f"{folder} does not say how to build the network; give it with --model.")
    score = named(evaluate) if evaluate else None
    dense, inputs = _model(reference, weights), _arguments.example_of(input, example)
    batches = _arguments.data_of(data, calibration, inputs, mean, std) or [inputs]
    report = verified(load(folder, dense), dense, batches, example=inputs, evaluate=score)
    if as_json:
        _print_json(report.dumps())
    else:
        out.print(_tables.report_table(report))


@app.command(name="report")
def report_folder(
    folder: _arguments.Saved,
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
    folder: _arguments.Saved,
    file: Annotated[Path, typer.Argument(help="What to write: .onnx or .pt2.", metavar="FILE")],
    model: _arguments.Dense = None,
    input: _arguments.Input = None,
    example: _arguments.Example = None,
    as_json: _arguments.Json = False,
) -> None:
    """Write a compressed network as one file that runs elsewhere.

    tenfold export small small.onnx --input 1,3,32,32
    """
    small = load(folder, build_model(model) if model else None)
    done = export(small, _arguments.example_of(input, example), file)
    if as_json:
        _print_json(done.model_dump_json(indent=2))
        return
    batches = "batches of any size" if done.any_batch else "batches of the given size only"
    out.print(f"Written to {done.file}, for {batches}; norms folded: {done.folded}.", soft_wrap=True)
    out.print(f"Its outputs differ from the network's by {done.relative:.2g} of their norm, {done.worst:.2g} at most.")


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
