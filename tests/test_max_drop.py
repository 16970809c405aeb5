"""The smallest network that loses no more than allowed: the search, what judges, and work that survives a stop."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import images, randomised, small_cnn
from torch import nn
from torch.utils.data import DataLoader

import tenfold
from tenfold import Budget, TenfoldError, TenfoldWarning, _fit, resumable
from tenfold._judge import interval
from tenfold._resume import digest, write_tensors, write_text
from tenfold._search import smallest
from tenfold.methods import SVD, SpatialSVD

MODEL = randomised(small_cnn())
EXAMPLE = images(1, 3, 8, 8)
BATCHES = [images(16, 3, 8, 8, seed=1), images(16, 3, 8, 8, seed=2)]
INPUTS = images(200, 3, 8, 8, seed=3)
with torch.no_grad():
    WANTED = MODEL(INPUTS)
METHODS = [SVD(), SpatialSVD()]


def nearness(model):
    """For each image, how near the outputs are to the dense network's; 0 is best."""
    with torch.no_grad():
        return -(model(INPUTS) - WANTED).square().sum(1) / WANTED.square().sum(1).mean()


def compressed(allowed, evaluate=nearness, **changed):
    arguments = {"calibration": BATCHES, "methods": METHODS, "recover": "refit", "evaluate": evaluate, **changed}
    return tenfold.compress(MODEL, Budget(max_drop=allowed), example=EXAMPLE, **arguments)


class Counted:
    """Counts what is evaluated, and stops where it is told to."""

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = 0, stop_at

    def __call__(self):
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt


seen = Counted()


def counted_nearness(model):
    seen()
    return nearness(model)


@settings(deadline=None, max_examples=200)
@given(
    power=st.floats(0.5, 6),
    knee=st.floats(0.02, 0.9),
    least=st.integers(1, 200_000),
    allowed=st.floats(0.001, 0.1),
)
def test_the_search_finds_where_a_falling_curve_crosses(power, knee, least, allowed):
    most, tried = 1_000_000, []

    def drop_at(size):
        tried.append(size)
        return allowed * (knee * most / size) ** power  # crosses at knee

    found = smallest(drop_at, least, most, allowed * knee**power, allowed)
    assert len(tried) <= 8
    assert len(set(tried)) == len(tried)
    assert least <= min(tried)
    assert found in tried
    assert drop_at(found) <= allowed
    assert found <= 1.12 * max(knee * most, least)


def test_the_search_gives_up_where_nothing_smaller_passes():
    assert smallest(lambda _: 1.0, 10, 1000, 0.0, 0.1) is None
    assert smallest(lambda _: 0.0, 1000, 1000, 0.0, 0.1) is None


def test_the_smallest_network_that_loses_no_more():
    found = tenfold.options(MODEL, example=EXAMPLE, methods=METHODS)
    plan = found.plan(Budget(max_drop=0.1), evaluate=nearness)
    small = tenfold.apply(MODEL, plan)
    assert float(nearness(small).mean()) >= -0.1
    size = sum(p.numel() for p in small.parameters())
    assert size < 0.9 * found.dense.params
    smaller = tenfold.apply(MODEL, found.plan(Budget(params=int(size * 0.95))))
    assert float(nearness(smaller).mean()) < -0.1
    same = tenfold.plan(MODEL, Budget(max_drop=0.1), example=EXAMPLE, methods=METHODS, evaluate=nearness)
    assert same == plan


def test_networks_are_judged_after_recovery_and_the_report_has_every_trial():
    result = compressed(0.01)
    report = result.report
    assert report.metric.dense == 0
    assert report.metric.small == pytest.approx(float(nearness(result.model).mean()), abs=1e-9)
    assert report.metric.small >= -0.01
    assert report.metric.interval[0] < report.metric.small < report.metric.interval[1]
    sizes = [trial.params for trial in report.trials]
    assert sizes == sorted(set(sizes))
    assert report.small.params == min(trial.params for trial in report.trials if trial.change >= -0.01)
    assert tenfold.Report.loads(report.dumps()) == report
    without = compressed(0.01, recover="none")
    assert report.small.params <= without.report.small.params


def test_limits_hold_as_well():
    found = tenfold.options(MODEL, example=EXAMPLE, methods=METHODS)
    plan = found.plan(Budget(max_drop=0.5, macs=0.6), evaluate=nearness)
    small = tenfold.apply(MODEL, plan)
    assert tenfold.measure(small, EXAMPLE).macs <= 0.6 * found.dense.macs
    assert float(nearness(small).mean()) >= -0.5
    with pytest.raises(TenfoldError, match=r"within the limits the metric falls by 0\.\d+, and max_drop is 0\.001"):
        found.plan(Budget(max_drop=0.001, params=0.3), evaluate=nearness)


@pytest.mark.parametrize("drop", [-0.1, float("nan"), float("inf"), "3"])
def test_impossible_drops_are_refused(drop):
    with pytest.raises(TenfoldError, match="0 or more"):
        Budget(max_drop=drop)


def test_a_drop_needs_something_that_evaluates():
    for make in (tenfold.compress, tenfold.plan):
        with pytest.raises(TenfoldError, match="max_drop needs evaluate"):
            make(MODEL, Budget(max_drop=0.1), example=EXAMPLE)
    budget = Budget(max_drop=0.1, params=0.5)
    for rule in (tenfold.MinMax, lambda budget: tenfold.Greedy(budget, nearness)):
        for wrong in (budget, 0.5):
            with pytest.raises(TenfoldError, match="takes limits"):
                rule(wrong)


@pytest.mark.parametrize(
    ("returned", "says"),
    [("good", "it must return one number"), (torch.ones(2, 2), r"shape \(2, 2\)"), (float("nan"), "returned nan")],
)
def test_what_is_no_score_is_refused(returned, says):
    with pytest.raises(TenfoldError, match=says):
        compressed(0.1, lambda _: returned)


def test_scores_of_other_examples_are_refused():
    counts = iter(range(3, 100))
    with pytest.raises(TenfoldError, match="3 scores for the dense network and 4 for the small"):
        compressed(0.1, lambda _: torch.zeros(next(counts)))


def test_a_tolerance_that_the_examples_cannot_tell_is_warned_of():
    def first_class(model):
        return (model(INPUTS[:50]).argmax(1) == WANTED[:50].argmax(1)).double()

    with pytest.warns(TenfoldWarning, match=r"50 examples can tell.*Evaluate on about [\d,]+ examples"):
        compressed(0.01, first_class)
    with pytest.warns(TenfoldWarning, match="no smaller network was found"):
        result = compressed(0, lambda model: float(nearness(model).mean()))
    assert result.plan.steps == ()
    assert result.report.metric.interval is None


def test_the_interval_is_that_of_paired_differences():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(400, generator=generator, dtype=torch.float64)
    small = dense - 0.1 + 0.02 * torch.randn(400, generator=generator, dtype=torch.float64)
    low, high = interval(small, dense)
    drawn = torch.randint(400, (4000, 400), generator=generator)
    means = (small - dense)[drawn].mean(1)
    assert low == pytest.approx(float(means.quantile(0.025)), abs=2e-4)
    assert high == pytest.approx(float(means.quantile(0.975)), abs=2e-4)


def test_a_stopped_job_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    wanted = compressed(0.01)
    fits = Counted()
    seen.calls, seen.stop_at = 0, 4
    descend = _fit.descend
    monkeypatch.setattr(_fit, "descend", lambda *arguments: (fits(), descend(*arguments)))

    def attempt():
        with resumable(tmp_path / "work"):
            return compressed(0.01, counted_nearness)

    with pytest.raises(KeyboardInterrupt):
        attempt()
    before = fits.calls
    seen.stop_at = None
    result = attempt()
    assert result.plan == wanted.plan
    assert result.report.trials == wanted.report.trials
    for left, right in zip(result.model.parameters(), wanted.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert 0 < fits.calls - before < before  # curves were not fitted again
    evaluated, fitted = seen.calls, fits.calls
    assert evaluated == len(wanted.report.trials) + 2  # the dense network, and the one at which it was stopped, twice
    attempt()
    assert (seen.calls, fits.calls) == (evaluated, fitted)


def test_damaged_work_is_made_anew(tmp_path):
    with resumable(tmp_path):
        plan = tenfold.plan(MODEL, Budget(params=0.5), example=EXAMPLE)
        for file in tmp_path.iterdir():
            file.write_bytes(file.read_bytes()[:-3])
        assert tenfold.plan(MODEL, Budget(params=0.5), example=EXAMPLE) == plan
    with pytest.raises(TenfoldError, match="is a file"), resumable(next(tmp_path.iterdir())):
        pass


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    for write in (lambda path: write_text(path, "x"), lambda path: write_tensors(path, {"x": torch.ones(2)})):
        write(tmp_path / "file")
        monkeypatch.setattr(Path, "replace", fails)
        with pytest.raises(error):
            write(tmp_path / "file")
        monkeypatch.undo()
        assert [file.name for file in tmp_path.iterdir()] == ["file"]
        with pytest.raises(TenfoldError, match="is a folder; name a file"):
            write(tmp_path)
        with pytest.raises(TenfoldError, match="file is a file; name a folder"):
            write(tmp_path / "file" / "inside")


def test_digests_tell_things_apart():
    other = copy.deepcopy(MODEL)
    assert digest(other) == digest(MODEL)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1e-6
    assert digest(other) != digest(MODEL)
    assert digest(nn.Sequential(nn.Flatten(), nn.ReLU())) != digest(nn.Sequential(nn.ReLU(), nn.Flatten()))
    assert digest([1, 2], 3) != digest([1], [2, 3])
    assert digest("a", "b") != digest("ab")
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))
    assert digest(torch.zeros(2)) != digest(torch.zeros(2, dtype=torch.int32))
    assert digest(SVD("output")) != digest(SVD("input"))

    def within(share):
        return lambda model: share

    assert digest(within(1)) == digest(within(1))
    assert digest(within(1)) != digest(within(2))


def test_digests_of_modules_know_their_code_and_settings():
    class Scales(nn.Linear):
        gain = 1.0

        def forward(self, x):
            return self.gain * super().forward(x)

    class Shifts(Scales):
        def forward(self, x):
            return super().forward(x) + 1

    made = [torch.nn.utils.skip_init(kind, 3, 2) for kind in (Scales, Scales, Shifts)]
    for each in made:
        nn.init.ones_(each.weight)
        nn.init.ones_(each.bias)
        each.__class__.__qualname__ = "Same"
    made[1].gain = -3.0
    assert digest(made[0]) == digest(copy.deepcopy(made[0]).train(not made[0].training))
    assert len({digest(each) for each in made}) == 3


def recursive():
    def depth(module):
        return 1 + max(map(depth, module.children()), default=0)

    return depth


def unset():
    if False:
        late = None
    return lambda model: late


def reading():
    batches = iter(DataLoader([1, 2]))
    return lambda model: next(batches)


@pytest.mark.parametrize("made", [recursive, unset, reading])
def test_what_cannot_be_digested_is_unlike_anything(made):
    evaluate = made()
    assert digest(evaluate) != digest(evaluate)


def test_errors_of_evaluate_are_shown_as_they_are():
    def fails(model):
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk") as raised:
        compressed(0.1, fails)
    assert raised.value.__context__ is None
