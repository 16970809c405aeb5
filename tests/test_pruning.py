"""Filter pruning in plans: costs, choices, what consumers take over, and that a plan alone rebuilds the shapes."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from benchmarks._nets import NETS, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import images, randomised
from test_filters import Awkward
from torch import nn

import tenfold
from tenfold import Budget, Plan, TenfoldError
from tenfold._data import example_inputs
from tenfold._filters import FilterGroup, filter_groups, removed
from tenfold._layers import matrices
from tenfold._metric import Metric
from tenfold._plan import Link
from tenfold._pruning import dense_groups, removals
from tenfold._removal import producers
from tenfold.methods import SVD, FilterPruning, SpatialSVD, Tucker
from tenfold.train import Round, progressive

NET, X = randomised(Awkward()), images(2, 3, 8, 8)
DATA = [images(16, 3, 8, 8, seed=seed) for seed in range(4)]
PRUNING = FilterPruning()


@pytest.fixture(scope="module")
def told():
    return tenfold.calibrate(NET, DATA)


@pytest.fixture(scope="module")
def found():
    return tenfold.options(NET, example=X, methods=[PRUNING])


def cost(model):
    measured = tenfold.measure(model, X)
    return [measured.params, measured.macs, measured.bytes]


def lost(small, data=X):
    with torch.no_grad():
        return float((small(data) - NET(data)).square().sum() / NET(data).square().sum())


@pytest.mark.parametrize("limit", [{"params": 0.8}, {"params": 0.3}, {"macs": 0.5}, {"params": 0.7, "macs": 0.4}])
def test_limits_hold_and_the_predicted_cost_is_the_measured_one(found, limit):
    plan = found.plan(Budget(**limit))
    small = tenfold.apply(NET, plan)
    assert cost(small) == [*found.predicted(plan.steps)]
    for name, share in limit.items():
        assert getattr(tenfold.measure(small, X), name) <= share * getattr(found.dense, name)
    worst = max(
        getattr(tenfold.measure(small, X), name) / share / getattr(found.dense, name) for name, share in limit.items()
    )
    assert worst > 0.9  # it is used: groups here are small
    assert cost(tenfold._apply.skeleton(NET, plan).to_empty(device="cpu")) == cost(small)


def test_every_step_says_what_it_takes(found):
    steps = found.plan(Budget(params=0.4)).steps
    for number, (before, after) in enumerate(found.costs(steps), 1):
        one = [found.predicted(steps[:count]) for count in (number - 1, number)]
        assert [*(after - before)] == [*(one[1] - one[0])]


def test_the_weakest_filters_go():
    """By their norms, relative to their layers' and summed over layers that must lose the same ones."""
    groups, _ = filter_groups(NET, example_inputs(X))
    for group in groups:
        layers = [NET.get_submodule(name) for name in group.producers]
        norms = [matrices(layer)[0].flatten(1).square().sum(1).detach() for layer in layers]
        expected = sum(norm / norm.sum() for norm in norms).argsort()
        ranking = PRUNING.ranking(producers(NET, group, None))
        assert [*ranking.order] == expected.tolist()
        for column, norm in zip(ranking.errors.T, norms, strict=True):
            sums = torch.cat([torch.zeros(1), norm[expected].cumsum(0)[:-1]]) / norm.sum()
            np.testing.assert_allclose(column, sums, rtol=1e-5, atol=1e-7)


def test_the_median_takes_what_others_can_replace():
    layer = nn.Linear(2, 5, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[5.0, 0.1], [5.0, 0.0], [5.0, -0.1], [-9.0, 0.0], [0.1, 0.0]]))
    link = Link(module="", side="out", filters=5, width=5)
    rows = layer.weight.detach()
    distances = [[float((a - b).norm()) for b in rows] for a in rows]
    expected = sorted(range(5), key=lambda row: sum(distances[row]))
    order = FilterPruning("median").ranking([(link, layer, None)]).order
    assert [*order] == expected
    assert order[0] == 1  # in the middle of its like, though of a large norm; by norms the last would go
    assert PRUNING.ranking([(link, layer, None)]).order[0] == 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 3))
def test_losses_are_those_of_the_metric(seed, filters, repeat):
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(4, filters * repeat + 2).double()
    inputs, outputs = (torch.randn(n, n, generator=generator, dtype=torch.float64) for n in (4, filters * repeat + 2))
    metric = Metric((inputs @ inputs.T)[None, None], (outputs @ outputs.T)[None], None)
    link = Link(module="", side="out", filters=filters, width=filters * repeat + 2, offset=1, repeat=repeat)
    ranking = PRUNING.ranking([(link, layer, metric)])
    assert sorted(ranking.order) == list(range(filters))
    for count in range(filters):
        error = torch.zeros(1, filters * repeat + 2, 4, dtype=torch.float64)
        for filter_ in ranking.order[:count]:
            rows = slice(1 + int(filter_) * repeat, 1 + (int(filter_) + 1) * repeat)
            error[0, rows] = layer.weight[rows].detach()
        whole = torch.zeros_like(error)
        whole[0, 1 : 1 + filters * repeat] = layer.weight[1 : 1 + filters * repeat].detach()
        found = ranking.errors[count, 0] * ranking.moves[0]
        assert found >= float(metric.square(error)) - 1e-9 * float(metric.square(whole))
        assert ranking.moves[0] == pytest.approx(float(metric.square(whole)))
    # The first to go is the one that alone moves least.
    alone = [float(metric.square(_only(layer, link, number))) for number in range(filters)]
    assert alone[ranking.order[0]] == pytest.approx(min(alone))


def _only(layer, link, number):
    error = torch.zeros(1, *layer.weight.shape, dtype=torch.float64)
    rows = slice(link.offset + number * link.repeat, link.offset + (number + 1) * link.repeat)
    error[0, rows] = layer.weight[rows].detach()
    return error


@pytest.mark.parametrize("told", [False, True])
def test_where_no_filter_can_go_the_others_serve(told):
    model, x = nn.Sequential(nn.Linear(24, 40)), images(96, 24)
    statistics = tenfold.calibrate(model, [x]) if told else None
    alone, both = (
        tenfold.options(model, example=x, methods=methods, statistics=statistics)
        for methods in ([SVD()], [SVD(), FilterPruning()])
    )
    assert both.plan(Budget(params=0.5)).steps == alone.plan(Budget(params=0.5)).steps
    refusals = []
    for found in (alone, both):
        with pytest.raises(TenfoldError, match="reach 104 parameters at least") as refused:
            found.plan(Budget(params=100))
        refusals.append(str(refused.value))
    assert refusals[0] == refusals[1]


def test_a_plan_of_several_steps_is_the_removal_at_once():
    """Behind concatenations too, where each step moves the channels of the next."""
    groups, _ = filter_groups(NET, example_inputs(X))
    generator = np.random.default_rng(0)
    for _ in range(5):
        counts = [(group, int(generator.integers(0, group.filters))) for group in groups]
        lost_some = [drop for drop in counts if drop[1]]
        plan = Plan(removals(PRUNING, lost_some))
        now, drops = NET, []
        for (group, count), step in zip(lost_some, plan.steps, strict=True):
            order = PRUNING.ranking(producers(now, FilterGroup(step.links), None)).order  # as the network is by then
            drops.append((group, [*map(int, order[:count])]))
            now = tenfold.apply(now, Plan([step]))
        at_once, in_turn = removed(NET, drops), tenfold.apply(NET, plan)
        for name, value in at_once.state_dict().items():
            assert torch.equal(in_turn.state_dict()[name], value), name
        assert torch.equal(now(X), in_turn(X))
        assert Plan.loads((Plan(plan.steps[:3]) + Plan(plan.steps[3:])).dumps()) == plan


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=6), st.randoms()
)
def test_groups_are_numbered_there_and_back(parts, random):
    """Concatenated groups, removed in any order: what the steps say gives the groups as the dense network counts."""
    width, groups = sum(filters * repeat for filters, repeat, _ in parts), []
    start = 0
    for number, (filters, repeat, gone) in enumerate(parts):
        maker = Link(module=f"m{number}", side="out", filters=filters, width=filters)
        reader = Link(module="all", side="in", filters=filters, width=width, offset=start, repeat=repeat)
        groups.append((FilterGroup((maker, reader)), min(gone, filters - 1)))
        start += filters * repeat
    random.shuffle(groups)
    steps = removals(PRUNING, groups)
    assert dense_groups(steps) == groups
    left = width
    for step in steps:
        assert step.links[1].width == left
        left -= (step.links[0].filters - step.rank[0]) * step.links[1].repeat


def test_a_share_of_every_group(found):
    plan = found.plan(tenfold.Ranks(share=0.5))
    assert {step.layers for step in plan.steps} == {group.producers for group in found.pruning.groups}
    assert all(step.rank == (round(step.links[0].filters / 2),) for step in plan.steps)
    assert not found.plan(tenfold.Ranks(share=1.0)).steps


def test_statistics_keep_the_outputs_nearer(told):
    held_back = images(64, 3, 8, 8, seed=99)
    plain = tenfold.options(NET, example=X, methods=[PRUNING]).plan(Budget(params=0.6))
    fitted = tenfold.options(NET, example=X, statistics=told, methods=[PRUNING]).plan(Budget(params=0.6))
    assert lost(tenfold.apply(NET, fitted, told), held_back) < 0.5 * lost(tenfold.apply(NET, plain), held_back)
    assert lost(tenfold.apply(NET, plain, told), held_back) < lost(tenfold.apply(NET, plain), held_back)


def test_what_others_can_give_is_lost_without_a_trace():
    """A filter that repeats another, scaled and shifted, goes: consumers read it of the other, and of the bias."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4)).double()
    with torch.no_grad():
        net[0].weight[4], net[0].bias[4] = 0.5 * net[0].weight[1], 0.3
    data = [image.double() for image in DATA]
    groups, _ = filter_groups(net, example_inputs(data[0]))
    (group,) = [group for group in groups if group.producers == ("0",)]

    step = removals(PRUNING, [(group, 1)])[0]
    small = copy.deepcopy(net)
    with torch.no_grad():
        small[0].weight[4] *= 1e-3  # the weakest now, and read as strongly
        small[1].weight[:, 4] *= 1e3
        small[0].bias[4] *= 1e-3
    assert torch.allclose(small(data[0]), net(data[0]))
    rest = tenfold.calibrate(small, data)
    new = tenfold.apply(small, Plan([step]), rest)
    assert new[0].out_channels == 5
    assert torch.allclose(new(data[0]), net(data[0]), rtol=0, atol=1e-4 * float(net(data[0]).abs().max()))


def test_statistics_of_what_is_left_are_those_of_the_layers(told):
    """After steps that remove filters, others are fitted to what their layers still read."""
    first = tenfold.options(NET, example=X, statistics=told, methods=[PRUNING]).plan(Budget(params=0.8))
    halfway = copy.deepcopy(NET)
    rest = tenfold._apply.taken(halfway, first.steps, told)
    for name, layer in rest.layers.items():
        _, outputs, inputs, positions = matrices(halfway.get_submodule(name)).shape
        assert layer.total.shape[1] == layer.gram.shape[-1] == inputs * positions
        assert layer.response.shape[-1] == outputs
    second = tenfold.options(halfway, example=X, statistics=rest, methods=[SVD()]).plan(Budget(params=0.8))
    at_once = tenfold.apply(NET, first + second, told)
    assert torch.equal(at_once(X), tenfold.apply(halfway, second, rest)(X))


def test_pruning_and_factors_under_one_budget(told):
    methods = [PRUNING, SVD(), SpatialSVD(), Tucker()]
    found = tenfold.options(NET, example=X, statistics=told, methods=methods)
    seen = set()
    for share in (0.9, 0.7, 0.5, 0.3):
        plan = found.plan(Budget(params=share))
        small = tenfold.apply(NET, plan, told)
        assert cost(small) == [*found.predicted(plan.steps)]
        assert tenfold.measure(small, X).params <= share * found.dense.params
        kinds = [bool(step.links) for step in plan.steps]
        assert kinds == sorted(kinds, reverse=True)  # filters first
        seen |= set(kinds)
        assert (
            not plan.steps or not {name for step in plan.steps for name in step.layers} & found.left_dense(plan).keys()
        )
    assert seen == {True, False}


def test_dead_filters_go_first_and_leave_the_outputs_as_they_were():
    net = randomised(NETS["resnet20"]())
    dead = {"layer1.0": [3, 5, 11], "layer2.1": [0, 1], "layer3.2": [*range(20, 40)]}
    with torch.no_grad():
        for block, filters in dead.items():
            layer, norm = net.get_submodule(f"{block}.conv1"), net.get_submodule(f"{block}.bn1")
            for tensor in (layer.weight, norm.weight, norm.bias):
                tensor[filters] = 0
    x = images(2, 3, 32, 32)
    found = tenfold.options(net, example=x, methods=[PRUNING, SVD()])
    alone = found.plan(Budget(params=found.dense.params - 1000))
    assert alone.steps
    for step in alone.steps:
        assert step.links[0].filters - step.rank[0] <= len(dead[step.layers[0].removesuffix(".conv1")])
    small = tenfold.apply(net, alone)
    assert torch.allclose(small(x), net(x), rtol=0, atol=1e-5 * float(net(x).abs().max()))
    both = found.plan(Budget(params=0.5))
    gone = {step.layers[0]: step.links[0].filters - step.rank[0] for step in both.steps if step.links}
    assert gone == {f"{block}.conv1": len(filters) for block, filters in dead.items()}


REBUILD = """
import sys, torch, tenfold
sys.path[:0] = ["tests", "."]
from nets import randomised
from test_filters import Awkward
torch.save(tenfold.load(sys.argv[1], Awkward().to("meta"))(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_a_fresh_process_rebuilds_it(tmp_path, told):
    found = tenfold.options(NET, example=X, statistics=told, methods=[PRUNING, SVD()])
    plan = found.plan(Budget(params=0.6))
    assert any(step.links for step in plan.steps)
    small = tenfold.apply(NET, plan, told)
    tenfold.save(tmp_path / "small", small, plan, tenfold.verify(small, NET, [X]))
    torch.save(X, tmp_path / "x")
    arguments = [str(tmp_path / name) for name in ("small", "x", "y")]
    subprocess.run([sys.executable, "-c", REBUILD, *arguments], check=True)
    assert torch.equal(torch.load(tmp_path / "y"), small(X))
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    replaced = {row["layer"]: row for row in report["replaced"]}
    for step in plan.steps:
        assert set(step.layers) <= replaced.keys()
    for name, row in replaced.items():
        assert row["params"] == sum(p.numel() for p in small.get_submodule(name).parameters())
        assert row["dense_params"] == sum(p.numel() for p in NET.get_submodule(name).parameters())


def test_the_pipeline_with_recovery(tmp_path):
    methods = [PRUNING, SVD()]
    for how in ("none", "refit", "blocks"):
        made = tenfold.compress(NET, Budget(params=0.6), example=X, calibration=DATA, methods=methods, recover=how)
        assert made.report.small.params <= 0.6 * made.report.dense.params
    plain = tenfold.compress(NET, Budget(params=0.6), example=X, calibration=DATA, methods=[PRUNING], recover="none")
    mended = tenfold.compress(NET, Budget(params=0.6), example=X, calibration=DATA, methods=[PRUNING])
    assert mended.report.drift.relative < plain.report.drift.relative
    tenfold.export(mended.model, X, tmp_path / "model.onnx")


def test_max_drop_with_filters():
    def evaluate(model):
        return -lost(model)

    made = tenfold.compress(
        NET, Budget(max_drop=0.2), example=X, calibration=DATA, methods=[PRUNING], evaluate=evaluate, recover="none"
    )
    assert made.report.metric.small >= -0.2
    assert made.report.small.params < made.report.dense.params
    assert len(made.report.trials) > 1


def test_what_stays_and_why():
    found = tenfold.options(NET, example=X, methods=[PRUNING], freeze=["grow"])
    plan = found.plan(Budget(params=0.6))
    reasons = found.left_dense(plan)
    assert reasons["grow"] == 'frozen by "grow"'
    assert reasons["stem"] == 'its filters lie in grow too: frozen by "grow"'  # a frozen consumer is left as it is
    assert reasons["head"] == "its channels are outputs of the network"
    assert {name for step in plan.steps for name in step.layers}.isdisjoint(reasons)


def test_residual_groups_that_cannot_go_name_all_their_layers():
    found = tenfold.options(NETS["resnet20"](), example=images(1, 3, 32, 32), methods=[PRUNING])
    reasons = found.left_dense(found.plan(Budget(params=0.8)))
    assert not any("no chosen method" in reason for reason in reasons.values())


def test_what_cannot_be_is_refused(found):
    with pytest.raises(TenfoldError, match="no importance 'l1'"):
        FilterPruning("l1")
    with pytest.raises(TenfoldError, match=r"these methods reach ([\d,]+) parameters at least"):
        found.plan(Budget(params=10))
    with pytest.raises(TenfoldError, match="EVBMF cannot decide how many filters stay; use Budget"):
        found.plan(tenfold.EVBMF())
    with pytest.raises(TenfoldError, match="Ranks decides how many filters stay by share only"):
        found.plan(tenfold.Ranks(rank=5))
    with pytest.raises(TenfoldError, match="as the only method"):
        tenfold.plan(NET, tenfold.Ranks(share=0.5), example=X, methods=[PRUNING, SVD()])
    with pytest.raises(TenfoldError, match="rounds keep the dense shapes"):
        progressive(NET, [Round(params=0.5)], [], example=X, calibration=DATA, methods=[PRUNING])
    with pytest.raises(TenfoldError, match="more than once"):
        tenfold.options(NET, example=X, methods=[PRUNING, FilterPruning("median")])
    groups = {group.producers: group for group in filter_groups(NET, example_inputs(X))[0]}
    plan = Plan(removals(PRUNING, [(groups["stem",], 2), (groups["grow",], 1)]))
    data = json.loads(plan.dumps())
    assert data["steps"][1]["links"][1]["offset"] == 4
    data["steps"][0]["rank"] = [5]
    with pytest.raises(TenfoldError, match=r"channels\); there are \d+ channels. If a step before it was changed"):
        tenfold.apply(NET, Plan.loads(json.dumps(data)))
    for change, words in [
        ({"rank": [999]}, "its rank is one number, of the filters that stay"),
        ({"rank": [1, 1]}, "its rank is one number"),
        ({"layers": ["head"]}, "do not say where the filters of its layers lie"),
        ({"method": {"name": "svd"}}, 'a step with links is of method "filters"'),
        ({"links": []}, "needs links"),
    ]:
        step = {**json.loads(plan.dumps())["steps"][0], **change}
        with pytest.raises(TenfoldError, match=words):
            tenfold.apply(NET, Plan.loads(json.dumps({"steps": [step]})))
    link = data["steps"][0]["links"][0]
    with pytest.raises(TenfoldError, match=r"its filters end at channel \d+ of \d+"):
        Link(**{**link, "offset": link["width"]})


def test_trained_networks_keep_more_by_data(shared_data):
    """A trained network, half of whose parameters go: statistics choose better filters, and consumers take over."""
    from benchmarks._compress import calibration
    from benchmarks._images import first_images
    from benchmarks._score import correct, in_bulk, percent

    net, batches = trained("resnet20", "cifar10-jpeg"), calibration("cifar10-jpeg", 0)
    judges = first_images("cifar10-jpeg", "train", 500)
    right = {}
    for name, told in (("weights", None), ("data", tenfold.calibrate(net, batches))):
        found = tenfold.options(net, example=batches[0][:1], statistics=told, methods=[PRUNING])
        small = tenfold.apply(net, found.plan(Budget(params=0.7)), told)
        right[name] = percent(correct(in_bulk(small), judges))
    assert right["data"] > right["weights"] + 10
    assert right["data"] > 80
