"""Targets: budgets are kept and used, rank rules mean what they say."""

import copy

import pytest
import torch
from nets import images, randomised, small_cnn
from torch import nn

import tenfold
from tenfold import EVBMF, Budget, Energy, Greedy, MinMax, Ranks
from tenfold.methods import SVD, TensorTrain, Tucker


@pytest.fixture(scope="module")
def net():
    return randomised(small_cnn())


@pytest.fixture(scope="module")
def found(net):
    return tenfold.options(net, example=images(2, 3, 16, 16))


def linear_with_spectrum(values, rows=6, columns=5):
    q1, _ = torch.linalg.qr(images(rows, rows))
    q2, _ = torch.linalg.qr(images(columns, columns, seed=1))
    layer = nn.Linear(columns, rows)
    sigma = torch.zeros(rows, columns)
    sigma[range(len(values)), range(len(values))] = torch.tensor(values)
    layer.weight.data = q1 @ sigma @ q2
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("kept", "rank"), [(0.5, 1), (100 / 103, 1), (0.98, 2), (101.5 / 103, 3), (0.9999, None), (1.0, None)]
)
def test_energy_is_the_share_that_is_kept(kept, rank):
    """Singular values 10, 1, 1, 1: energies 100, 1, 1, 1."""
    net = linear_with_spectrum([10.0, 1.0, 1.0, 1.0], 20, 20)
    plan = tenfold.plan(net, Energy(kept), example=images(1, 20), methods=[SVD()])
    assert [step.rank for step in plan.steps] == ([(rank or 4,)])


def test_energy_leaves_dense_what_no_cheaper_option_keeps():
    net = linear_with_spectrum([3.0, 3.0, 3.0, 3.0, 3.0])
    assert tenfold.plan(net, Energy(0.9), example=images(1, 5)).steps == ()


@pytest.mark.parametrize("limit", ["params", "macs", "bytes"])
@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3, 0.15])
def test_budget_is_never_exceeded_and_used(net, found, limit, share):
    x = images(2, 3, 16, 16)
    small = tenfold.apply(net, found.plan(Budget(**{limit: share})))
    used = getattr(tenfold.measure(small, x), limit) / getattr(found.dense, limit)
    assert 0.97 * share <= used <= share  # a rank of the largest layer is 2% of this small net


def test_several_limits_hold_at_once(net, found):
    small = tenfold.measure(tenfold.apply(net, found.plan(Budget(params=0.6, macs=0.4))), images(2, 3, 16, 16))
    assert small.params <= 0.6 * found.dense.params
    assert small.macs <= 0.4 * found.dense.macs


def test_absolute_and_relative_limits_agree(found):
    half = int(0.5 * found.dense.params)
    assert found.plan(Budget(params=half)) == found.plan(Budget(params=0.5))
    assert found.plan(Budget(params=1.0)).steps == ()


def test_the_predicted_cost_is_the_measured_one(net, found):
    plan = found.plan(Budget(params=0.4))
    small = tenfold.measure(tenfold.apply(net, plan), images(2, 3, 16, 16))
    assert [small.params, small.macs, small.bytes] == [*found.predicted(plan.steps)]


def test_no_layer_costs_more_than_dense(found):
    for target in (Budget(params=0.5), Budget(macs=0.5), Energy(0.95), EVBMF()):
        for before, after in found.costs(found.plan(target).steps):
            assert (after <= before).all()
            assert (after < before).any()


def test_an_unreachable_budget_says_the_least_and_that_is_reachable(net, found):
    with pytest.raises(
        tenfold.TenfoldError, match=r"the budget is 10 parameters; these methods reach ([\d,]+)"
    ) as error:
        found.plan(Budget(params=10))
    least = int(str(error.value).split("reach ")[1].split(" ")[0].replace(",", ""))
    small = tenfold.apply(net, found.plan(Budget(params=least)))
    assert sum(p.numel() for p in small.parameters()) == least
    with pytest.raises(tenfold.TenfoldError):
        found.plan(Budget(params=least - 1))


def test_an_unreachable_budget_names_the_largest_layers_in_the_way():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(20, 20), nn.LSTM(20, 30))
            self.mix = nn.Parameter(torch.eye(30))

        def forward(self, x):
            return self[1](self[0](x))[0] @ self.mix

    lstm = 4 * 30 * (20 + 30 + 2)
    way = r" The largest layers that must stay as they are, in parameters: "
    called = rf"1 \({lstm:,}: no chosen method serves LSTM\)"
    itself = r"the model itself \(900: no chosen method serves \S+Net\)"
    with pytest.raises(tenfold.TenfoldError, match=f"unfreeze a layer.{way}{called}; {itself}.$"):
        tenfold.options(Net(), example=torch.rand(4, 20)).plan(Budget(params=0.5))
    frozen = tenfold.options(Net(), example=torch.rand(4, 20), freeze=["0"])
    with pytest.raises(tenfold.TenfoldError, match=f'{called}; {itself}; 0 .420: frozen by "0"..$'):
        frozen.plan(Budget(params=0.5))


def test_two_limits_of_which_one_is_out_of_reach_are_refused_with_both_figures(found):
    with pytest.raises(tenfold.TenfoldError, match=r"reach [\d,]+ parameters and [\d,]+ multiply-adds at least"):
        found.plan(Budget(params=0.5, macs=0.001))


@pytest.mark.parametrize("value", [0, 0.0, 1.5, -0.5, -3, True, "0.5", float("nan")])
def test_limits_that_mean_nothing_are_refused(value):
    with pytest.raises(tenfold.TenfoldError, match=r"\(0, 1\]"):
        Budget(params=value)


def test_a_budget_needs_a_limit():
    with pytest.raises(tenfold.TenfoldError, match="no limit"):
        Budget()


def test_ranks_by_share(net):
    plan = tenfold.plan(net, Ranks(share=0.5), example=images(1, 3, 16, 16), methods=[SVD()])
    assert {step.layers[0]: step.rank for step in plan.steps} == {
        "0": (8,),  # half of 16
        "3": (8,),  # half of 16 outputs a group
        "5": (16,),
        "9": (12,),
        "11": (5,),
    }


def test_ranks_by_number_are_lowered_to_full_rank(net):
    plan = tenfold.plan(net, Ranks(rank=20), example=images(1, 3, 16, 16), methods=[Tucker()])
    assert {step.layers[0]: step.rank for step in plan.steps} == {
        "0": (3, 16),
        "3": (8, 16),
        "5": (20, 20),
        "9": (20, 20),
        "11": (10, 10),
    }


def test_ranks_by_layer(net):
    x = images(1, 3, 16, 16)
    plan = tenfold.plan(net, Ranks(per_layer={"5": (4, 6), "9": 2}), example=x)
    assert {step.layers[0]: (step.method.name, step.rank) for step in plan.steps} == {
        "5": ("tucker", (4, 6)),
        "9": ("svd", (2,)),
    }
    with pytest.raises(tenfold.TenfoldError, match='no layer "nine"'):
        tenfold.plan(net, Ranks(per_layer={"nine": 2}), example=x)
    with pytest.raises(tenfold.TenfoldError, match="as many entries"):
        tenfold.plan(net, Ranks(per_layer={"5": (4, 6, 2)}), example=x)


@pytest.mark.parametrize(
    "bad",
    [{}, {"share": 0.5, "rank": 3}, {"share": 0.0}, {"share": 1.5}, {"rank": 0}, {"rank": (3, 0)}, {"per_layer": [3]}],
)
def test_ranks_that_mean_nothing_are_refused(bad):
    with pytest.raises(tenfold.TenfoldError):
        Ranks(**bad)


def test_evbmf_finds_planted_ranks_in_a_network():
    net = nn.Sequential(nn.Linear(60, 80), nn.ReLU(), nn.Conv1d(1, 1, 1))
    net[0].weight.data = images(80, 4) @ images(4, 60, seed=1) + 0.1 * images(80, 60, seed=2)
    plan = tenfold.plan(net, EVBMF(), example=images(1, 1, 60), methods=[SVD()])
    assert [(step.layers, step.rank) for step in plan.steps] == [(("0",), (4,))]


def test_the_same_inputs_give_the_same_plan(net):
    plans = [
        tenfold.plan(copy.deepcopy(net), Budget(params=0.4, macs=0.5), example=images(2, 3, 16, 16)) for _ in range(2)
    ]
    assert plans[0].dumps() == plans[1].dumps()


def test_frozen_layers_stay_dense(net):
    found = tenfold.options(net, example=images(1, 3, 16, 16), freeze=["5", "1*"])
    plan = found.plan(Budget(params=0.9))
    assert not {"5", "11"} & {step.layers[0] for step in plan.steps}
    assert found.left_dense(plan)["5"] == 'frozen by "5"'
    with pytest.raises(tenfold.TenfoldError, match="matches no layer"):
        tenfold.options(net, example=images(1, 3, 16, 16), freeze=["nothing"])


def worst_error(found, plan):
    """The largest relative squared error of any layer, from the weights themselves."""
    small = tenfold.apply(found.model, plan)
    worst = 0.0
    for step in plan.steps:
        before = found.model.get_submodule(step.layers[0]).weight.detach()
        after = small.get_submodule(step.layers[0]).weight.detach()
        worst = max(worst, float((after - before).square().sum() / before.square().sum()))
    return worst


@pytest.mark.parametrize("budget", [Budget(params=0.5), Budget(macs=0.4, bytes=0.6)])
def test_minmax_has_the_least_worst_error_under_the_budget(net, budget):
    x = images(2, 3, 16, 16)
    found = tenfold.options(net, example=x, methods=[SVD(), SVD("input")])
    plan = found.plan(MinMax(budget))
    small = tenfold.measure(tenfold.apply(net, plan), x)
    assert all(getattr(small, name) <= limit for name, limit in budget.limits(found).items())
    # Oracle: the best threshold from the curves, by trying every one.
    errors = sorted({float(e) for ladder in found.ladders for e in ladder.cheaper().errors[:, 0]})
    worst = worst_error(found, plan)
    for threshold in [e for e in errors if e < worst * (1 - 1e-6)]:
        assert not fits(found, budget, threshold)


def fits(found, budget, threshold):
    limits = budget.limits(found)
    total = {name: getattr(found.dense, name) for name in limits}
    sites = {ladder.candidate.site.layers for ladder in found.ladders}
    for site in sites:
        rows = [
            row
            for ladder in found.ladders
            if ladder.candidate.site.layers == site
            for row, error in zip(ladder.cheaper().costs, ladder.cheaper().errors[:, 0], strict=True)
            if error <= threshold
        ]
        if rows:
            names = ("params", "macs", "bytes")
            best = min(rows, key=lambda row: sum(row[names.index(n)] / getattr(found.dense, n) for n in limits))
            for name in limits:
                total[name] += best[names.index(name)]
    return all(total[name] <= limit for name, limit in limits.items())


@pytest.mark.parametrize("examples", [None, 3])
def test_greedy_spares_the_layer_that_the_metric_needs(net, examples):
    """The metric notices layer 5 alone, so greedy ranks leave it and compress the others."""
    x = images(2, 3, 16, 16)
    dense = net[5].weight.detach().clone()

    def evaluate(model):
        score = -float((model[5].weight - dense).square().sum())
        return score if examples is None else torch.full((examples,), score)

    found = tenfold.options(net, example=x, methods=[SVD()])
    plan = found.plan(Greedy(Budget(params=0.85), evaluate))
    assert "5" not in {step.layers[0] for step in plan.steps}
    assert plan.steps
    assert sum(p.numel() for p in tenfold.apply(net, plan).parameters()) <= 0.85 * found.dense.params


@pytest.mark.parametrize("rule", [MinMax, lambda budget: Greedy(budget, lambda model: 0.0, levels=3)])
def test_rules_under_a_budget_refuse_what_is_out_of_reach(found, rule):
    with pytest.raises(tenfold.TenfoldError, match=r"these methods reach [\d,]+ parameters at least"):
        found.plan(rule(Budget(params=10)))


@pytest.mark.parametrize("budget", [Budget(params=0.9, latency=0.5), Budget(latency_ms=1.0), Budget(max_drop=1.0)])
def test_rules_under_a_budget_refuse_what_they_do_not_heed(budget):
    with pytest.raises(tenfold.TenfoldError, match="neither max_drop nor limits of time"):
        MinMax(budget)


def test_embeddings_are_compressed_though_lookups_have_no_multiply_adds():
    net = nn.Sequential(nn.Embedding(1000, 32), nn.Linear(32, 4))
    ids = torch.arange(12).reshape(2, 6)
    for methods in ([SVD()], [TensorTrain()]):
        result = tenfold.compress(net, Budget(params=0.5), example=ids, methods=methods)
        assert [step.layers for step in result.plan.steps] == [("0",)]
        assert result.report.small.params <= 0.5 * result.report.dense.params
