"""The seed benchmarks' networks: the published counts, and their layers, written from the papers, as oracles."""

from importlib import import_module
from pathlib import Path

import pytest
import torch
from benchmarks import weighing
from benchmarks._fresh import fresh
from benchmarks._images import Images
from benchmarks._nets import NETS
from benchmarks._train import SHORTER, fit, kept
from benchmarks.seeds import _joint_cases as joint
from benchmarks.seeds import _structure_cases as structure
from benchmarks.seeds._cases import CASES, dense_shape, ranks_plan, shape
from benchmarks.seeds._structure_page import Row, page
from benchmarks.seeds.structure import uniform
from nets import images, small_cnn

import tenfold
from tenfold._apply import skeleton
from tenfold.methods import SVD
from tenfold.train import Recipe


@pytest.mark.parametrize(
    ("net", "method", "parameters", "fewer"),
    [
        ("conv", "dense", 557_248, 1),
        ("conv", "tt-3.23x", 172_518, 3.23),
        ("conv", "tt-3.23x-clamped", 108_997, 5.11),
        ("conv-fc", "dense", 13_934_538, 1),
        ("conv-fc", "tt-41.65x", 334_554, 41.65),
        ("conv-fc", "tt-82.87x-clamped", 156_895, 88.81),
    ],
)
def test_parameters_of_the_published_networks(net, method, parameters, fewer):
    found, dense = (sum(p.numel() for p in shape(CASES[net, name]).parameters()) for name in (method, "dense"))
    assert found == parameters
    assert round(dense / found, 2) == fewer


@pytest.mark.parametrize(("net", "method", "layers"), [("conv", "tt-3.23x", None), ("conv-fc", "tt-41.65x", ("fc2",))])
def test_trains_reproduce_networks_that_are_trains(net, method, layers):
    """The authors' layers hold exact trains of their ranks, so ours at these ranks, clamped, give them back."""
    case = CASES[net, method]
    layers = layers or tuple(case.ranks)
    theirs = fresh(shape(case), torch.device("cpu"), seed=0)
    dense = dense_shape(net).to_empty(device="cpu")
    for name in layers:
        dense.get_submodule(name).weight.data = theirs.get_submodule(name).weight.detach()
    plan = ranks_plan(case)
    plan = tenfold.Plan([step for step in plan.steps if step.layers[0] in layers])
    ours = tenfold.apply(dense, plan)
    for name in layers:
        expected = theirs.get_submodule(name).weight
        found = ours.get_submodule(name)
        assert isinstance(found, tenfold.Factored)
        assert torch.allclose(found.weight, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.parametrize(
    ("net", "rate", "factors"),
    [
        ("resnet18", 0.04, (17.757, 17.757, 17.757, 17.757, 17.757, 17.954, 17.757)),
        ("resnet18", 0.08, (11.990, 11.897, 11.946, 11.946, 11.946, 11.990, 11.946)),
        ("resnet34", 0.04, (22.069, 21.994, 22.033, 22.033, 22.183, 22.408, 22.183)),
        ("resnet34", 0.08, (13.925, 13.747, 13.779, 13.779, 13.901, 13.897, 13.901)),
        ("resnet50", 0.04, (6.276, 6.276, 6.281, 6.275, 6.300, 6.297, 6.304)),
    ],
)
def test_published_factors_of_joint_decomposition(net, rate, factors):
    """Of plain spatial SVD, RJSVD-1, RJSVD-2, LJSVD and Bi-JSVD, counted from the built networks."""
    assert joint.sizes(net, "cifar10-jpeg", rate).fewer == dict(zip(joint.SCHEMES, factors, strict=True))


def test_what_is_trained_is_kept_and_goes_on_where_it_was(tmp_path):
    """The pieces of benchmarks: training in a folder of its own, then weights in half precision, made once."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (64,), generator=generator))
    recipe = Recipe(epochs=2, batch=16, lr=0.05, distil=0, held_back=0.25)
    with torch.device("meta"):
        shape = small_cnn()
    made, stop = [], [True]

    def train(folder):
        dense = fresh(small_cnn(), torch.device("cpu"), seed=0)

        def evaluate(model):
            if stop and len(made) == 1:
                stop.clear()
                raise KeyboardInterrupt
            made.append(model)
            return 0.5

        return fit(dense, dense, images, recipe, folder, evaluate)

    with pytest.raises(KeyboardInterrupt):
        kept(tmp_path / "net", lambda: shape, train)
    assert [path.name for path in tmp_path.iterdir()] == ["net.work"]
    done = kept(tmp_path / "net", lambda: shape, train)
    assert [path.name for path in tmp_path.iterdir()] == ["net.1of1.safetensors"]
    assert len(made) == 2  # an epoch before the stop, and the other after it
    assert done.metrics == (50.0, 50.0)
    again = kept(tmp_path / "net", lambda: shape, None)
    for found, expected in zip(again.model.state_dict().values(), done.model.state_dict().values(), strict=True):
        assert torch.equal(found, expected)
    whole = fit(*[fresh(small_cnn(), torch.device("cpu"), seed=0)] * 2, images, recipe, tmp_path / "whole").model
    for found, expected in zip(done.model.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4)  # half precision


def test_joint_jobs_have_names_of_their_own_and_controls_as_long():
    every = [
        job
        for net in joint.NETS
        for data in joint.DATA
        for short in (False, True)
        for job in joint.jobs(net, data, 0, short=short, quick=False)
    ]
    assert len({job.command for job in every}) == len({job.stem for job in every}) == len(every)
    for job in every:
        assert {job.dense, job.control} <= set(every)  # of the same length
        assert job.control.recipe.epochs == job.recipe.epochs
        assert job.recipe.epochs * (SHORTER if job.short else 1) in (joint.FRESH.epochs, joint.FURTHER.epochs)


def test_structure_jobs_have_names_of_their_own():
    every = [
        job
        for net in structure.NETS
        for data in joint.DATA
        for start in structure.STARTS
        for short in (False, True)
        for job in structure.jobs(net, data, start, 0, short=short, quick=False)
    ]
    assert len({job.command for job in every}) == len({job.stem for job in every}) == len(every)
    dense = {job.dense.stem for job in every} | {job.control.stem for job in every}
    assert not dense & {job.stem for job in every}
    for job in every:  # the control sees as many epochs
        assert job.recipe("whole").epochs == job.recipe("wide").epochs + job.recipe("small").epochs


@pytest.mark.parametrize("share", structure.SIZES)
def test_uniform_rates_meet_the_size(share):
    net, x = NETS["resnet20"]().eval(), images(1, 3, 32, 32)
    plan = uniform(net, x, share)
    params = sum(p.numel() for p in skeleton(net, plan).parameters())
    assert 0.9 * share <= params / sum(p.numel() for p in net.parameters()) <= share
    kept = [step.rank[0] / step.links[0].filters for step in plan.steps]
    assert max(kept) - min(kept) < 0.07


def test_the_page_of_the_structure_seed():
    job = structure.Job("resnet20", "cifar10-jpeg", "asfp", 0.5, short=True)
    row = Row(
        **{"net": job.net, "data": job.data, "split": "test", "method": job.method, "trained": True, "quick": False},
        **{"dense_accuracy": 88.0, "control_accuracy": 88.5, "accuracy": 87.5, "before": 86.0, "after": 86.0},
        **{"interval": (-0.9, -0.1), "params_ratio": 0.49, "macs_ratio": 0.51, "latency_ratio": 0.8, "seed": 0},
        **{"control_interval": (-1.4, -0.6), "device": "a CPU", "version": "0", "command": job.command},
    )
    line = next(line for line in page([row]).splitlines() if "| asfp |" in line)
    cells = "| 50 % | asfp | 0.490 | 0.510 | 0.80 | 86.00 | 86.00 | 87.50 | -0.50 (-0.90 to -0.10) | -1.00 "
    assert line == cells + "(-1.40 to -0.60) |"


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "benchmarks").rglob("[a-z]*.py")), ids=str)
def test_every_benchmark_can_be_imported(path):
    if path.stem == "decompositions":
        pytest.importorskip("tensorly")
    if "plots" in path.stem or path.stem == "methods":
        pytest.importorskip("matplotlib")
    import_module(".".join(path.with_suffix("").parts[path.parts.index("benchmarks") :]))


@pytest.mark.parametrize("how", list(weighing.SUMS))
def test_sums_of_errors_choose_within_the_budget(how):
    net, x = small_cnn(), images(1, 3, 16, 16)
    told = tenfold.calibrate(net, [images(32, 3, 16, 16)])
    found = tenfold.options(net, example=x, statistics=told, methods=[SVD()])
    measured = {ladder.candidate.site.layers: 0.5 for ladder in found.ladders}
    plan = found.plan(weighing.Weighed(0.6, how, measured))
    assert plan.steps
    assert found.predicted(plan.steps)[0] <= 0.6 * found.dense.params
