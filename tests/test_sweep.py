"""Sweeps as a person runs them: right rows, none lost, none made twice."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import tenfold
from tenfold import Budget, TenfoldError
from tenfold._cli import app
from tenfold._sweep import run_sweep
from tenfold._sweep_rows import NEEDED, Row
from tenfold._sweep_setting import Sweep
from tenfold._timed import Clock
from tenfold.methods import SVD
from tenfold.report._pareto import pareto
from tenfold.report._sweep_page import sweep_page

NETS = """
import time
from pathlib import Path

import torch
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 3, 8, 8, generator=generator) for _ in range(4)]


def accuracy(model):
    if Path("slow").exists():
        time.sleep(float(Path("slow").read_text()))
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return (model(x).argmax(1) == torch.arange(64) % 10).double()


def nothing(model):
    return "nothing"
"""
SWEEP = """
calibration = 64
recover = "refit"
evaluate = "sweptnets:accuracy"
seeds = [0, 1]
budgets = [{ params = 0.7 }, { params = 0.5 }]

[[nets]]
name = "tiny"
model = "sweptnets:net"
weights = "w.pt"
input = "1,3,8,8"
data = "sweptnets:batches"

[methods]
svd = "svd"
tucker = "tucker"
"""
ROOT = Path(__file__).absolute().parent.parent
TIMES = ("dense_ms", "small_ms", "time_share", "seconds", "curves_seconds")


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    """A folder with a module of networks, their weights, and a sweep of them, in which the tests stand."""
    place = tmp_path_factory.mktemp("sweep")
    (place / "sweptnets.py").write_text(NETS)
    (place / "sweep.toml").write_text(SWEEP)
    before = Path.cwd()
    os.chdir(place)
    sys.path.insert(0, str(place))
    import sweptnets

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(sweptnets.net().state_dict(), "w.pt")
    yield place
    os.chdir(before)
    sys.path.remove(str(place))


@pytest.fixture(scope="module")
def rows(place):
    return run_sweep(Sweep.read(Path("sweep.toml")), Path("swept"))


@pytest.fixture(autouse=True)
def quick(rows, monkeypatch):
    """Networks of the first sweep were timed; the times of others are not looked at."""
    monkeypatch.setattr(Clock, "compared", lambda clock, small: (2.0, 1.0))


def command(*arguments):
    # What a shell started in the background ignores interrupts, and so would this.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    line = [sys.executable, "-c", f"{heeding}; from tenfold._cli import main; main()", "sweep", *arguments]
    return {"args": line, "env": {**os.environ, "COLUMNS": "80", "PYTHONWARNINGS": "ignore"}}


def swept(*arguments):
    threads = ("--threads", str(torch.get_num_threads()))
    return subprocess.run(**command(*arguments, *threads), capture_output=True, text=True, timeout=120)


def untimed(rows):
    return [row.model_dump(exclude=set(TIMES)) for row in rows]


def written(folder):
    return [Row(**line) for line in pq.read_table(Path(folder) / "rows.parquet").to_pylist()]


def sweep_with(**changes):
    return Sweep.read(Path("sweep.toml")).model_copy(update=changes)


def test_rows_are_in_order_and_as_they_are_written(rows):
    assert [(row.method, row.budget, row.seed) for row in rows] == [
        ("dense", None, None),
        *[(m, b, s) for m in ("svd", "tucker") for b in ("params=0.7", "params=0.5") for s in (0, 1)],
    ]
    assert written("swept") == rows
    assert not Path("swept/work").exists()
    for row in rows[1:]:
        assert row.params <= float(row.budget.partition("=")[2]) * rows[0].params
        assert row.params_share == pytest.approx(row.params / rows[0].params)
        assert row.time_share == pytest.approx(row.small_ms / row.dense_ms)
        assert row.change_low <= row.metric - row.dense_metric <= row.change_high
        assert min(row.dense_ms, row.small_ms, row.seconds, row.curves_seconds) > 0
    dense = rows[0]
    assert (dense.params_share, dense.time_share, dense.drift, dense.metric) == (1, 1, 0, dense.dense_metric)


def test_a_row_is_what_compress_comes_to(rows):
    import sweptnets

    model = sweptnets.net().eval()
    model.load_state_dict(torch.load("w.pt"))
    result = tenfold.compress(
        model,
        Budget(params=0.5),
        example=torch.zeros(1, 3, 8, 8),
        calibration=sweptnets.batches(),
        methods=[SVD("output"), SVD("input")],
        evaluate=sweptnets.accuracy,
        recover="refit",
        seed=1,
    )
    row = next(row for row in rows if (row.method, row.budget, row.seed) == ("svd", "params=0.5", 1))
    report = result.report
    assert (row.params, row.bytes) == (report.small.params, report.small.bytes)
    assert (row.dense_metric, row.metric) == (report.metric.dense, report.metric.small)
    assert (row.change_low, row.change_high) == report.metric.interval
    assert row.drift == pytest.approx(report.drift.relative, rel=1e-9)
    assert row.macs == tenfold.measure(result.model, torch.zeros(1, 3, 8, 8)).macs
    assert tenfold.Plan.loads((Path("swept") / row.plan).read_text()).steps == result.plan.steps


def test_the_same_again_makes_nothing_and_elsewhere_the_same(rows):
    before = {file: file.stat().st_mtime_ns for kind in ("rows", "times") for file in Path("swept", kind).iterdir()}
    assert run_sweep(Sweep.read(Path("swept/setting.json")), Path("swept")) == rows
    assert before == {file: file.stat().st_mtime_ns for file in before}
    assert untimed(run_sweep(Sweep.read(Path("sweep.toml")), Path("elsewhere"))) == untimed(rows)


def test_only_rows_of_another_setting_are_made(rows):
    run_sweep(sweep_with(seeds=(0,)), Path("changed"))
    before = {file: file.stat().st_mtime_ns for file in Path("changed/rows").iterdir()}
    more = run_sweep(sweep_with(seeds=(0, 1), methods={"svd": "svd", "both": "svd,tucker"}), Path("changed"))
    after = {file: file.stat().st_mtime_ns for file in Path("changed/rows").iterdir()}
    assert {file: after[file] for file in before} == before
    assert len(after) == len(before) + 2 + 4  # svd with the second seed, both with two
    assert [row.method for row in more] == ["dense", *4 * ["svd"], *4 * ["both"]]
    run_sweep(sweep_with(seeds=(0,), recover="none", methods={"svd": "svd"}), Path("changed"))
    assert len(list(Path("changed/rows").iterdir())) == len(after) + 2


def test_a_killed_sweep_goes_on_and_loses_no_row(rows):
    Path("slow").write_text("0.5")
    run = subprocess.Popen(**command("sweep.toml", "--out", "killed"), stderr=subprocess.DEVNULL)
    kept = Path("killed/rows")
    deadline = time.monotonic() + 60
    while len(list(kept.glob("*.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    Path("slow").unlink()
    before = {file: file.stat().st_mtime_ns for file in kept.glob("*.json")}
    assert 4 <= len(before) < 9
    assert untimed(run_sweep(Sweep.read(Path("sweep.toml")), Path("killed"))) == untimed(rows)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(list(kept.glob("*.json"))) == 9


def test_an_interrupted_sweep_says_how_to_go_on():
    Path("slow").write_text("4")  # a busy machine is late with the signal
    line = command("sweep.toml", "--out", "interrupted", "--jobs", "2")
    run = subprocess.Popen(**line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(Path("interrupted").glob("rows/*-svd-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, said = run.communicate(timeout=60)
    Path("slow").unlink()
    assert run.returncode == 130
    assert "interrupted; finished work is in interrupted/work" in said
    assert "Traceback" not in said
    assert list(Path("interrupted").glob("rows/*-svd-*.json"))
    assert gone(run.pid)


def gone(group, patience_s=20.0):
    """Whether no process of a group is left, at last."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_several_processes_come_to_the_same(rows):
    done = swept("sweep.toml", "--out", "together", "--jobs", "2", "--json")
    assert done.returncode == 0, done.stderr
    found = [Row(**line) for line in json.loads(done.stdout)]
    assert untimed(found) == untimed(rows)
    assert found == written("together")


def test_ray_comes_to_the_same(rows):
    pytest.importorskip("ray")
    done = swept("sweep.toml", "--out", "spread", "--ray", "local")
    assert done.returncode == 0, done.stderr
    assert untimed(written("spread")) == untimed(rows)


def test_a_refused_job_is_a_row_and_the_command_shows_all():
    Path("small.toml").write_text(
        SWEEP.replace("{ params = 0.7 }", "{ params = 10 }").replace("[0, 1]", "[0]") + 'odd = "svd,cp"\n'
    )
    done = swept("small.toml", "--out", "small")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.count("refused") == 3
    assert "Written to small: rows.parquet, sweep.html" in done.stdout
    refused = [row for row in written("small") if row.error]
    assert [(row.method, row.budget, row.metric) for row in refused] == [
        (method, "params=10", None) for method in ("svd", "tucker", "odd")
    ]
    assert "the budget is 10 parameters; these methods reach" in refused[0].error
    page = Path("small/sweep.html").read_text()
    assert "these methods reach" in page
    assert "Pareto front" in page


REFUSED = {
    "unknown key": (("seeds", "seds"), "bad.toml cannot be read: Sweep: seds: Extra inputs"),
    "unknown key of a net": (
        ('input = "1', 'size = 3\ninput = "1'),
        "Sweep: nets.0: Net: size: Extra inputs are",
    ),
    "key that is missing": (('input = "1,3,8,8"', ""), "input: Field required"),
    "wrong type": (("calibration = 64", 'calibration = "many"'), "calibration: Input should be a valid integer"),
    "no methods": (('svd = "svd"\ntucker = "tucker"', ""), "methods: Dictionary should have at least 1 item"),
    "no budgets": (("[{ params = 0.7 }, { params = 0.5 }]", "[]"), "budgets: Tuple should have at least 1 item"),
    "no seeds": (("[0, 1]", "[]"), "seeds: Tuple should have at least 1 item"),
    "seeds twice": (("[0, 1]", "[1, 1]"), 'seeds: "1" is there twice'),
    "budgets twice": (("0.7", "0.5"), 'budgets: "params=0.5" is there twice'),
    "unknown method": (('"tucker"', '"tuker"'), 'methods: there is no method "tuker"'),
    "method dense": (("tucker =", "dense ="), 'methods: "dense" names the rows'),
    "name of no file": (('"tiny"', '"../tiny"'), "name: String should match pattern"),
    "budget of nothing": (("{ params = 0.7 }", "{}"), "the budget has no limit"),
    "share above one": (("0.7", "1.7"), "params"),
    "way of recovery": (('"refit"', '"magic"'), "recover: recover is 'magic'"),
    "no TOML": (("[methods]", "[methods"), "bad.toml is no TOML"),
    "weights": (('"w.pt"', '"no.pt"'), "nets.tiny.weights: there is no file no.pt"),
    "model": (("sweptnets:net", "sweptnets:nat"), "nets.tiny.model: sweptnets has no callable nat"),
    "input": (("1,3,8,8", "1,x"), 'nets.tiny.input: "1,x" is no shape'),
    "data": (("sweptnets:batches", "parquet:no*.parquet"), "nets.tiny.data: no file or folder matches no*.parquet"),
    "evaluate": (("sweptnets:accuracy", "sweptnets:no"), "evaluate: sweptnets has no callable no"),
    "no number": (("sweptnets:accuracy", "sweptnets:nothing"), "evaluate: evaluate returned 'nothing'"),
    "device": (("calibration =", 'device = "abacus"\ncalibration ='), 'device: "abacus" is no device'),
    "rows": (("calibration =", 'rows = ["no.csv"]\ncalibration ='), "rows: there is no file no.csv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_is_refused_in_one_line(name):
    change, said = REFUSED[name]
    assert change[0] in SWEEP
    Path("bad.toml").write_text(SWEEP.replace(*change))
    with pytest.raises(TenfoldError) as refused:
        run_sweep(Sweep.read(Path("bad.toml")), Path("bad"))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not list(Path("bad").glob("rows/*"))


def test_nets_of_one_name_are_refused():
    net = SWEEP[SWEEP.index("[[nets]]") : SWEEP.index("[methods]")]
    Path("bad.toml").write_text(SWEEP.replace(net, 2 * net))
    with pytest.raises(TenfoldError, match='nets: "tiny" is there twice'):
        Sweep.read(Path("bad.toml"))


def test_the_command_refuses_in_one_line():
    done = swept("no.toml", "--out", "refused")
    assert (done.returncode, done.stderr) == (1, "tenfold: there is no file no.toml.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("timed.toml", "--out", "refused", "--jobs", "2"), "leave out --jobs and --ray"),
        (("timed.toml", "--out", "refused", "--ray", "local"), "leave out --jobs and --ray"),
        (("sweep.toml", "--out", "sweep.toml"), "is a file"),
        (("sweep.toml", "--out", "."), "holds other files"),
    ],
)
def test_what_cannot_be_is_refused(arguments, said):
    Path("timed.toml").write_text(SWEEP.replace("{ params = 0.7 }", "{ latency = 0.7 }"))
    with pytest.raises(TenfoldError, match=said):
        app(["sweep", *arguments, "--threads", str(torch.get_num_threads())], standalone_mode=False)
    assert not Path("refused").exists()


OTHER = {"library": "theirs", "net": "tiny", "method": "prune", "params_share": 0.4, "metric": 0.09}


def csv_of(path, *lines):
    with Path(path).open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return str(path)


def test_rows_of_other_libraries_are_added(rows):
    named = csv_of("theirs.csv", {**OTHER, "budget": "", "seed": 3}, {**OTHER, "budget": "half", "seed": ""})
    found = run_sweep(sweep_with(rows=(named, "swept/rows.parquet")), Path("with-others"))
    assert untimed(found[:9]) == untimed(rows)
    assert found[9:11] == [Row(**OTHER, seed=3), Row(**OTHER, budget="half")]
    assert found[11:] == rows
    assert written("with-others") == found
    assert found[9].label == "prune (theirs)"


@pytest.mark.parametrize("column", NEEDED)
def test_rows_that_lack_a_column_are_refused(column):
    lines = {name: value for name, value in OTHER.items() if name != column}
    with pytest.raises(TenfoldError, match=f"bad.csv lacks the column {column}; rows need library, net"):
        run_sweep(sweep_with(rows=(csv_of("bad.csv", lines),)), Path("bad"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "has an unknown column colour"),
        ({"metric": "high"}, "cannot be read: In CSV column #4"),
        ({"metric": ""}, "row 1 has no metric"),
        ({"net": "large"}, 'row 1: this sweep has no network "large"'),
    ],
)
def test_rows_that_are_wrong_are_refused(change, said):
    with pytest.raises(TenfoldError, match=re.escape(said)):
        run_sweep(sweep_with(rows=(csv_of("bad.csv", OTHER | change),)), Path("bad"))


EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(rows, place):
    """The page of the first sweep, with a refused job and rows of another library, whose method is markup."""
    sweep = Sweep.read(Path("sweep.toml"))
    refused = Row(net="tiny", method="svd", budget="params=10", seed=0, error=EVIL)
    others = [Row(**{**OTHER, "method": EVIL, "metric": metric}) for metric in (0.5, 0.6)]
    (place / "sweep.html").write_text(sweep_page([*rows, refused, *others], sweep))
    return place / "sweep.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_shows_every_method_and_asks_for_nothing(browser, page, rows, width):
    troubles = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark")
    view = context.new_page()
    view.on("console", lambda message: troubles.append(message.text))
    view.on("pageerror", lambda error: troubles.append(str(error)))
    view.on("dialog", lambda dialog: troubles.append("a method's name was run"))
    view.on("request", lambda asked: troubles.append(asked.url) if asked.url != page.as_uri() else None)
    view.goto(page.as_uri())
    view.wait_for_selector(".plot .main-svg")
    assert view.locator("figure.chart").count() == 3
    legends = [view.locator(f"figure.chart >> nth={number} >> .legendtext").all_text_contents() for number in range(3)]
    ours = ["Pareto front", "dense", "svd", "tucker"]
    assert legends == [[*ours, f"{EVIL} (theirs)"], ours, ours]  # theirs has no time
    assert view.locator("main > section").last.locator("tbody tr").count() == 1
    every = view.locator("main > section").nth(1)
    assert every.locator("tbody tr").count() == len(rows) + 2
    every.locator("th button", has_text="metric").click()
    shown = [float(text) for text in every.locator("tbody td:nth-child(5)").all_inner_texts()]
    assert shown == sorted(shown)
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
    assert troubles == []


def test_the_page_names_the_front():
    rows = [
        Row(net="tiny", method="dense", params_share=1.0, metric=0.9, dense_metric=0.9, params=100),
        Row(net="tiny", method="svd", budget="params=0.5", seed=0, params_share=0.501, metric=0.8),
        Row(net="tiny", method="svd", budget="params=0.5", seed=1, params_share=0.499, metric=0.9),
        Row(net="tiny", method="tucker", budget="params=0.5", seed=0, params_share=0.498, metric=0.84),
        Row(net="tiny", method="tucker", budget="params=0.3", seed=0, params_share=0.3, metric=0.7),
    ]
    said = sweep_page(rows, Sweep.read(Path("sweep.toml")))
    assert "On the Pareto front, shares rounded to 1 %: dense, svd at params=0.5, tucker at params=0.3." in said


@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 4).map(float)))
def test_the_front_is_what_nothing_beats(points):
    def beats(a, b):
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    assert pareto(points).tolist() == [not any(beats(other, point) for other in points) for point in points]
