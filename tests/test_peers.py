"""The benchmark of other packages: where their knobs land, what fails, and the page."""

import json
from importlib import import_module

import pytest
import torch
from benchmarks import _rows
from benchmarks._images import Images
from benchmarks._score import packed
from benchmarks.peers import __main__ as peers
from benchmarks.peers import _adapter, _environments, _make
from benchmarks.peers._page import page
from benchmarks.peers._row import Found, Job, Row
from nets import images, small_cnn
from torch import nn
from torch.nn.utils import parametrize

import tenfold


def net(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 10))


@pytest.mark.parametrize("share", [0.7, 0.5, 0.35, 0.2])
def test_a_knob_lands_at_the_share_or_just_below(share):
    dense = net(100)
    small = _adapter.landed(lambda knob: net(max(1, round(100 * knob))), dense, share)
    limit = share * _adapter.counted(dense)
    assert limit - 19 < _adapter.counted(small) <= limit  # 19 parameters a unit


def test_a_knob_that_turns_back_at_its_end_lands_too():
    dense = net(100)
    small = _adapter.landed(lambda knob: net(100 if knob < 0.02 else round(100 * knob)), dense, 0.5)
    assert 0.48 < _adapter.counted(small) / _adapter.counted(dense) <= 0.5


def test_a_share_that_no_knob_reaches_is_told():
    with pytest.raises(_adapter.Unreached, match=r"the smallest network has 80\.1% of the parameters"):
        _adapter.landed(lambda knob: net(max(80, round(100 * knob))), net(100), 0.5)


def test_reparametrisations_count_as_the_weight_they_make():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))
    assert sum(p.numel() for p in layer.parameters()) == 100
    assert _adapter.counted(layer) == 90
    assert parametrize.is_parametrized(layer)


def test_the_best_setting_is_that_of_the_least_loss_and_others_may_fail():
    torch.manual_seed(0)
    dense = small_cnn().eval()
    inputs = images(64, 3, 16, 16)
    batches = [(inputs, dense(inputs).argmax(1))]

    def fails(share):
        raise ValueError("no such layer")

    settings = {"fails": fails, "too large": lambda _: dense, "other": lambda _: small_cnn(), "cut": lambda _: cut}
    cut = tenfold.apply(dense, tenfold.plan(dense, tenfold.Budget(params=0.8), example=inputs[:1]))
    assert _adapter.best(settings, dense, 0.999, batches).setting == "cut"
    with pytest.raises(ValueError, match="no such layer"):
        _adapter.best({"fails": fails}, dense, 0.5, batches)
    with pytest.raises(_adapter.Unreached, match=r"100\.0% of the parameters are left, asked 50%"):
        _adapter.best({"too large": lambda _: dense}, dense, 0.5, batches)


@pytest.mark.parametrize(
    ("peer", "message"),
    [("tednet", "the peer is not for this Python"), ("dense", "No such file")],
)
def test_a_peer_that_fails_is_a_row(peer, message, tmp_path):
    home = tmp_path / "envs" / ("tednet" if peer == "tednet" else "tenfold")
    home.mkdir(parents=True)
    if peer == "tednet":
        (home / "failed.txt").write_text("ERROR: the peer is not for this Python")
    else:  # an interpreter that says what Python says, and ends
        (home / "bin").mkdir()
        (home / "made").touch()
        said = "Traceback (most recent call last):\\n  File x\\nOSError: No such file\\nmore"
        (home / "bin" / "python").write_text(f'#!/bin/sh\nprintf "{said}"\nexit 1\n')
        (home / "bin" / "python").chmod(0o755)
    job = Job("resnet20", "cifar10-jpeg", peer, 0.5, 0, 0, quick=True)
    path = tmp_path / "peers.json"
    _rows.make_missing(path, Row, [(job.command, lambda: peers.run(job, tmp_path, 1))])
    (row,) = _rows.read(path, Row)
    assert row.found is None
    assert message in row.message
    assert "\n" not in row.message
    assert message in row.line()
    assert message in page([row.model_copy(update={"quick": False})])


def test_installing_says_what_pip_says(tmp_path, monkeypatch):
    class Done:
        returncode, stderr = 1, "WARNING: slow\nERROR: No matching distribution\nERROR: more"

    monkeypatch.setattr(
        _environments.subprocess, "run", lambda *_, **__: (tmp_path / "tednet").mkdir(exist_ok=True) or Done
    )
    for _ in range(2):  # the second time from what is kept
        with pytest.raises(_environments.Unavailable, match=r"^ERROR: No matching distribution$"):
            _environments.python_of("tednet", tmp_path)


def test_nothing_but_the_networks_is_timed_each_in_its_faster_memory_format(monkeypatch):
    small, dense, judging = small_cnn(), small_cnn(), Images(images(8, 3, 16, 16), torch.zeros(8).long())

    def timed(runs, **_):
        def fails(*_):
            raise AssertionError("modes are set while networks are timed")

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "train", fails)
            outputs = [run() for run in runs]
        ours, ours_last, others, others_last = outputs
        torch.testing.assert_close(ours, ours_last)
        torch.testing.assert_close(others, others_last)
        assert not torch.equal(ours, others)
        last = torch.channels_last
        stored = [run.args[0].is_contiguous(memory_format=last) for run in runs]
        kernels = [run.func[0].weight.is_contiguous(memory_format=last) for run in runs]
        assert stored == kernels == [False, True, False, True]
        return [1.0, 1.5, 4.0, 2.0]

    monkeypatch.setattr(_make, "interleaved_ms", timed)
    assert _make.judged(small, dense, judging, torch.zeros(8).bool()).latency_ratio == 0.5


def test_every_peer_has_an_adapter():
    for peer in (*_environments.PEERS, _environments.DENSE):
        adapter = import_module(f"benchmarks.peers.{peer.replace('-', '_')}")
        assert callable(adapter.settings)
        assert not adapter.INSTALL or "==" in adapter.INSTALL[0]


def test_commands_are_unique_and_make_their_row_alone(monkeypatch):
    def asked(*words):
        monkeypatch.setattr("sys.argv", ["peers", *words])
        return list(peers.jobs(peers.arguments()))

    everything = [*asked(), *asked("--tuned"), *asked("--tuned", "--epochs", "30"), *asked("--quick")]
    everything += asked("--net", "resnet18", "--data", "cifar10-jpeg")
    assert len({job.command for job in everything}) == len({job.stem for job in everything}) == len(everything)
    for job in everything:
        assert asked(*job.options) == [job]


def row(peer, accuracy, latency, seed, share=0.5, epochs=0):
    right = torch.rand(1000, generator=torch.Generator().manual_seed(seed)) < accuracy / 100
    found = Found(
        **{"package": f"{peer} 1.0", "setting": "usual", "norms": True, "dense_accuracy": 90.0, "accuracy": accuracy},
        **{"interval": (accuracy - 91, accuracy - 89), "right": packed(right), "images": 1000, "params_ratio": 0.5},
        **{"macs_ratio": 0.6, "latency_ratio": latency, "seconds": 1.0},
    )
    job = Job("resnet20", "cifar10-jpeg", peer, share, 0, epochs, quick=False)
    return Row(
        **{"net": job.net, "data": "cifar10-jpeg", "split": "test", "peer": peer, "asked": share, "epochs": epochs},
        **{"quick": False, "seed": 0, "found": found, "message": None, "device": "a CPU", "version": "0"},
        command=job.command,
    )


@pytest.mark.parametrize(
    ("accuracy", "latency", "verdict"),
    [
        (80.0, 0.8, "tenfold"),
        (80.0, 0.98, "**level**"),
        (80.0, 1.2, "**the other**"),
        (95.0, 1.02, "tenfold"),  # level in time, and certainly more accurate
        (60.0, 0.5, "none as accurate | | | **the other**"),
    ],
)
def test_the_page_says_who_is_faster_at_equal_accuracy(accuracy, latency, verdict):
    text = page([row("tednet", 80.0, 1.0, 1), row("tenfold", accuracy, latency, 1)])
    (line,) = [line for line in text.splitlines() if "| tednet, 50 % |" in line]
    assert line.endswith(f"| {verdict} |")
    notes = [line for line in text.splitlines() if line.startswith("- resnet20, not tuned, tednet, 50 %: ")]
    assert len(notes) == ("the other" in verdict)
    if notes:
        told = f"in {latency:.2f} of the dense time, tenfold, 50 % has {accuracy:.2f} %, -"
        assert (told if latency < 1 else "no network of tenfold was asked") in notes[0]


@pytest.mark.parametrize(
    ("ours", "other", "control", "verdict"),
    [
        (89.5, 89.4, None, "neither certainly less accurate than dense"),
        (89.5, 88.9, None, "only tednet certainly less accurate than dense"),
        (88.8, 88.9, None, "both certainly less accurate than dense"),
        (88.8, 88.9, 89.0, "neither certainly less accurate than dense trained as long"),
        (88.8, 88.9, 96.0, "both certainly less accurate than dense trained as long"),
    ],
)
def test_the_page_says_of_what_is_level_whether_it_is_level_with_dense(ours, other, control, verdict):
    epochs = int(control is not None)
    rows = [row("tenfold", ours, 1.0, 1, epochs=epochs), row("tednet", other, 1.0, 2, epochs=epochs)]
    rows += [row("dense", control, 1.0, 3, share=1.0, epochs=1)] if epochs else []
    assert f"| **level**; {verdict} |" in page(rows)


def test_the_page_says_who_is_ahead_and_is_the_same_for_any_order():
    rows = [row("tenfold", 80.0, 1.4, 1), row("tednet", 50.0, 0.5, 2), row("nni", 90.0, 0.8, 3, share=0.7)]
    rows += [row("tenfold", 70.0, 0.9, 4, share=0.7), row("dense", 91.0, 1.0, 5, share=1.0, epochs=1)]
    rows += [row("tenfold", 85.0, 0.9, 6, epochs=1), row("tenfold-fast", 60.0, 0.4, 7)]
    text = page(rows)
    assert page(rows[::-1]) == text
    assert page([Row.model_validate(json.loads(one.model_dump_json())) for one in rows]) == text
    lines = text.splitlines()
    verdicts = [line.split("|")[-2].strip() for line in lines if line.startswith("| resnet20 | none |")]
    accuracy, time = ["**nni**", "tenfold"], ["**the other**", "**the other**", "tenfold"]  # dense, nni, tednet
    assert verdicts == accuracy + time
    order = [line.split("|")[1].strip() for line in lines if "| usual; norms" in line]
    assert order == [
        *("nni 1.0", "**tenfold 1.0**"),
        *("**tenfold 1.0**", "**tenfold-fast 1.0**", "tednet 1.0"),
        "**tenfold 1.0**",
    ]
    assert "Dense: 90.00 %; trained as long, 91.00 %." in text
