"""The kit of `tenfold profile`: one file that times a network elsewhere, without this package."""

import json
import subprocess
import sys
import zipfile

import pytest
from nets import images, randomised, small_cnn
from torch import nn

import tenfold
from tenfold import Budget, Profile, TenfoldError
from tenfold._kit import write_kit
from tenfold._timed import Clock
from tenfold.methods import CP, SVD, Tucker

NET, X = randomised(small_cnn()), images(8, 3, 16, 16)
# Whoever imports one of these on the target machine fails there.
RUN = (
    "import runpy, sys; sys.modules.update(dict.fromkeys({}, None)); sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
ABSENT = {"onnxruntime": ["torch", "tenfold", "onnx"], "eager": ["tenfold", "onnx", "onnxruntime"]}


METHODS = (SVD(), Tucker(), CP())


def options(engine, methods=METHODS, **further):
    return tenfold.options(NET, example=X, methods=list(methods), engine=engine, **further)


@pytest.fixture(scope="module", params=["onnxruntime", "eager"])
def profiled(request, tmp_path_factory):
    """The table that a kit wrote in a process without this package."""
    engine, folder = request.param, tmp_path_factory.mktemp("kit")
    count = write_kit(options(engine), folder / "kit.pyz")
    command = [sys.executable, "-c", RUN.format(ABSENT[engine]), str(folder / "kit.pyz"), str(folder / "times.json")]
    done = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "are in" in done.stdout
    return engine, folder, count


def test_the_table_of_the_target_plans_here(profiled):
    engine, folder, count = profiled
    profile = Profile.load(folder / "times.json")
    assert len(profile.times) == count
    assert profile.conditions.engine == engine
    assert profile.conditions.threads == 1
    assert min(profile.times.values()) > 0
    assert profile.whole_ms > 0
    found = options(profile)
    clock = Clock(found)
    for dense, others in clock.pieces():  # all that planning starts from is there
        assert dense.key in profile.times
        assert {piece.key for piece in others} <= profile.times.keys()
    plan = found.plan(Budget(params=0.9))
    timed = clock.network(plan)
    assert timed.small_ms is None
    assert timed.dense_ms == profile.whole_ms
    assert timed.predicted > 0


def test_a_limit_of_time_is_kept_by_the_table(profiled, tmp_path):
    """With times that are known: options take as long as their multiply-adds, and so does the network."""
    _, folder, _ = profiled
    table = json.loads((folder / "times.json").read_text())
    clock = Clock(options(Profile.load(folder / "times.json")))
    for ladder in clock.options.ladders:
        cheap = ladder.cheaper()
        for place in clock._places(cheap) if len(cheap.ranks) else ():
            macs = cheap.costs[place, 1] + cheap.dense[1]
            table["times"][clock._piece(ladder.candidate, cheap.ranks[place]).key] = float(macs)
            table["times"][clock._dense(ladder.candidate.site.layers).key] = float(cheap.dense[1])
    table["whole_ms"] = float(clock.options.dense.macs)
    (tmp_path / "known.json").write_text(json.dumps(table))
    known = Profile.load(tmp_path / "known.json")
    methods = [SVD(), Tucker(), CP()]
    result = tenfold.compress(NET, Budget(latency=0.6), example=X, methods=methods, engine=known)
    macs = result.report.small.macs / result.report.dense.macs
    assert 0.55 <= macs <= 0.6
    assert result.report.timed.predicted == pytest.approx(macs, abs=1e-3)
    assert result.report.timed.small_ms is None


def test_a_kit_is_small_and_holds_no_weights(profiled):
    _, folder, _ = profiled
    assert (folder / "kit.pyz").stat().st_size < 200_000
    names = zipfile.ZipFile(folder / "kit.pyz").namelist()
    assert {"__main__.py", "latency.py", "pieces.json"} <= set(names)


def test_the_table_of_another_network_is_refused(profiled):
    _, folder, _ = profiled
    profile = Profile.load(folder / "times.json")
    found = tenfold.options(nn.Sequential(nn.Linear(9, 9)), example=images(2, 9), methods=[SVD()], engine=profile)
    with pytest.raises(TenfoldError, match="the profile is of another network, input or setting"):
        found.plan(Budget(latency=0.5))


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(TenfoldError, match='a kit runs in "onnxruntime" or "eager"'):
        write_kit(options("compile"), tmp_path / "kit.pyz")
    layer = nn.Linear(16, 16)  # called twice, which a kit cannot say
    for net, width in ((nn.Sequential(nn.Linear(3, 1)), 3), (nn.Sequential(layer, nn.ReLU(), layer), 16)):
        with pytest.raises(TenfoldError, match="so there is nothing to time"):
            write_kit(tenfold.options(net, example=images(1, width)), tmp_path / "kit.pyz")
    for damage in ("torn", "{}", '{"times": []}'):
        (tmp_path / "times.json").write_text(damage)
        with pytest.raises(TenfoldError, match=r"times\.json cannot be read"):
            Profile.load(tmp_path / "times.json")
    with pytest.raises(TenfoldError, match="cannot be read"):
        Profile.load(tmp_path / "absent.json")
