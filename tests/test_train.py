"""Fine-tuning: nearer to the dense network, the same after a kill, the same on several processes."""

import copy
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.tracking import GeneralTracker
from nets import Stopped, StopsAt, images, randomised, small_cnn
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import IterableDataset, TensorDataset

import tenfold
from tenfold import Budget, Plan, Step, TenfoldError
from tenfold._pair import rebuilding
from tenfold.methods import CP, SVD, TensorTrain
from tenfold.train import Augment, Recipe, Round, _finetune, finetune, progressive
from tenfold.train._augment import mixed, neighbours
from tenfold.train._balance import balance
from tenfold.train._losses import decayed, distillation
from tenfold.train._progressive import multiplied_out

DENSE = randomised(small_cnn())
PLAN = tenfold.plan(DENSE, Budget(params=0.4), example=images(1, 3, 8, 8), methods=[SVD(), CP(3)])
SMALL = tenfold.apply(DENSE, PLAN)
INPUTS = images(200, 3, 8, 8, seed=1)
with torch.no_grad():
    LOGITS = DENSE(INPUTS)
EXAMPLES = TensorDataset(INPUTS, LOGITS.argmax(1))
RECIPE = Recipe(epochs=2, batch=32, lr=0.003, held_back=0.2, ema=0.5)


def drift(model):
    with torch.no_grad():
        return float((model(INPUTS) - LOGITS).square().sum() / LOGITS.square().sum())


def apart(left, right):
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return sum(float((a - b).detach().double().square().sum()) for a, b in pairs)


def same(left, right):
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("layer", "given", "method", "rank", "expected"),
    [
        (nn.Conv2d(64, 64, 3), images(2, 64, 5, 5), SVD(), (16,), False),
        (nn.Conv2d(64, 64, 3), images(2, 64, 5, 5), CP(3), (134,), True),  # moves more numbers
        (nn.Conv2d(64, 64, 3), images(2, 64, 5, 5), CP(3), (14,), False),
        (nn.Conv2d(64, 64, 3), images(2, 64, 5, 5), TensorTrain(), (2, 2), True),
        (nn.Linear(128, 96), images(4, 128), SVD(), (20,), False),
        (nn.Embedding(60, 40), torch.arange(9), SVD(), (8,), False),
    ],
)
def test_weights_are_rebuilt_where_factors_are_more_work(monkeypatch, layer, given, method, rank, expected):
    dense = randomised(nn.Sequential(layer, nn.Identity()))
    small = tenfold.apply(dense, Plan((Step(layers=("0",), method=method, rank=rank),)))
    calls, rebuilt = [], tenfold.Factored.rebuilt
    monkeypatch.setattr(tenfold.Factored, "rebuilt", lambda self: calls.append(self) or rebuilt(self))
    with torch.no_grad():
        usual = small(given)
        assert not calls
        with rebuilding(small, dense):
            assert torch.allclose(small(given), usual, atol=1e-4)
    assert bool(calls) is expected


def test_outputs_come_nearer_and_nothing_else_changes():
    before = [copy.deepcopy(model.state_dict()) for model in (SMALL, DENSE)]
    state = torch.get_rng_state()
    small = copy.deepcopy(SMALL).requires_grad_(False)
    done = finetune(small, DENSE, EXAMPLES, RECIPE)
    assert drift(done.model) < 0.7 * drift(SMALL)
    assert [epoch.epoch for epoch in done.history] == [1, 2]
    assert done.history[1].loss < done.history[0].loss
    assert 0 < done.history[1].metric <= 1
    for model, was in zip((SMALL, DENSE), before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not done.model.training
    assert not any(p.requires_grad for p in done.model.parameters())
    assert done.model.state_dict().keys() == SMALL.state_dict().keys()
    again = finetune(small, DENSE, EXAMPLES, RECIPE)
    assert same(again.model, done.model)


@pytest.mark.parametrize(
    "change",
    [
        {"features": 1.0},
        {"optimizer": "adamw", "lr": 0.001},
        {"precision": "bfloat16"},
        {"balance": False},
        {"distil": 0.0},
        {"mixup": 1.0},
        {"schedule": "constant"},
    ],
)
def test_every_recipe_trains(change):
    recipe = RECIPE.model_copy(update={"epochs": 1, **change})
    done = finetune(SMALL, DENSE, EXAMPLES, recipe, augment=Augment(shift=1))
    assert all(bool(p.isfinite().all()) for p in done.model.parameters())
    assert {p.dtype for p in done.model.parameters()} == {torch.float32}


def test_other_losses_and_metrics_and_what_is_not_logits():
    class Regression(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return {"y": self.net(x)}

    dense, small = Regression(DENSE), Regression(SMALL)
    with pytest.raises(TenfoldError, match=r"gives dict, no logits.*give finetune a loss"):
        finetune(small, dense, EXAMPLES, RECIPE)
    seen = []
    done = finetune(
        small,
        dense,
        EXAMPLES,
        RECIPE,
        loss=lambda found, wanted, _: (found["y"] - wanted["y"]).square().mean(),
        evaluate=lambda model: seen.append(1) or -drift(model.net),
    )
    assert done.history[-1].metric == pytest.approx(-drift(done.model.net), rel=1e-4)
    assert len(seen) == 2


def test_labels_tell_which_axis_holds_the_classes():
    logits, wanted = images(4, 6, 5), images(4, 6, 5, seed=1)
    labels = torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(0))
    last = distillation(logits, wanted, labels, RECIPE)
    second = distillation(logits.movedim(2, 1), wanted.movedim(2, 1), labels, RECIPE)
    by_rows = distillation(logits.flatten(0, 1), wanted.flatten(0, 1), labels.flatten(), RECIPE)
    assert last.item() == pytest.approx(by_rows.item(), rel=1e-5)
    assert second.item() == pytest.approx(by_rows.item(), rel=1e-5)
    shares = nn.functional.one_hot(labels.flatten(), 5).float()
    soft = distillation(logits.flatten(0, 1), wanted.flatten(0, 1), shares, RECIPE)
    assert soft.item() == pytest.approx(by_rows.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "target", "says"),
    [
        ((4, 6, 5), None, "4x6x5, of which no labels tell whether classes are second or last"),
        ((4, 6, 5), torch.zeros(4, 3, dtype=torch.long), "4x6x5, and labels of shape 4x3 do not go with that"),
        ((4, 6), torch.zeros((), dtype=torch.long), r"4x6, and labels of shape \(\) do not go with that"),
        ((4, 3), images(4, 3), "4x3, and floating-point labels that are no probabilities"),
        ((4, 1, 8, 8), images(4, 1, 8, 8), "4x1x8x8, and floating-point labels that are no probabilities"),
        ((4, 1), None, "4x1, one class"),
    ],
)
def test_what_is_no_classification_is_refused(shape, target, says):
    with pytest.raises(TenfoldError, match=says + r".*give finetune a loss"):
        distillation(torch.zeros(shape), torch.zeros(shape), target, RECIPE)


def test_tokens_with_classes_last_are_tuned_and_scored():
    tagger = nn.Sequential(nn.Embedding(20, 12), nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 5))
    tokens = torch.randint(20, (512, 7), generator=torch.Generator().manual_seed(0))
    examples = [(row, row % 5) for row in tokens]
    recipe = RECIPE.model_copy(update={"epochs": 6, "lr": 0.1, "distil": 0.0})
    history = finetune(tagger, tagger, examples, recipe).history
    assert history[-1].metric > 0.9


def without_times(history):
    return [epoch.model_copy(update={"seconds": 0.0}) for epoch in history]


@pytest.mark.parametrize("at", [1, 4, 5, 7, 10])
def test_a_run_that_was_stopped_ends_the_same(at, tmp_path, monkeypatch):
    monkeypatch.setattr(_finetune, "_KEEP_S", 0.0)
    whole = finetune(SMALL, DENSE, EXAMPLES, RECIPE, augment=Augment(shift=1))
    assert all(epoch.seconds > 0 for epoch in whole.history)
    augment = StopsAt(at, Augment(shift=1))
    with pytest.raises(Stopped):
        finetune(SMALL, DENSE, EXAMPLES, RECIPE, augment=augment, folder=tmp_path)
    resumed = finetune(SMALL, DENSE, EXAMPLES, RECIPE, augment=augment, folder=tmp_path)
    assert same(resumed.model, whole.model)
    assert without_times(resumed.history) == without_times(whole.history)
    assert augment.calls == 2 * 5 + 1
    assert same(finetune(SMALL, DENSE, EXAMPLES, RECIPE, folder=tmp_path).model, whole.model)
    assert augment.calls == 2 * 5 + 1
    with pytest.raises(TenfoldError, match="is of another run"):
        finetune(SMALL, DENSE, EXAMPLES, RECIPE.model_copy(update={"lr": 0.1}), folder=tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"torn")
    with pytest.raises(TenfoldError, match="is no checkpoint"):
        finetune(SMALL, DENSE, EXAMPLES, RECIPE, folder=tmp_path)


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"features": 1.0, "mixup": 0.5}])
def test_other_recipes_too_end_the_same_after_a_stop(change, tmp_path, monkeypatch):
    monkeypatch.setattr(_finetune, "_KEEP_S", 0.0)
    recipe = RECIPE.model_copy(update=change)
    whole = finetune(SMALL, DENSE, EXAMPLES, recipe)
    augment = StopsAt(8)
    with pytest.raises(Stopped):
        finetune(SMALL, DENSE, EXAMPLES, recipe, augment=augment, folder=tmp_path)
    assert same(finetune(SMALL, DENSE, EXAMPLES, recipe, augment=augment, folder=tmp_path).model, whole.model)


def test_one_step_of_adamw_is_that_of_the_plain_loss():
    """A step by hand: the loss of one whole batch, without augmentation, balancing, decay or clipping."""
    recipe = Recipe(
        epochs=1, batch=200, held_back=0, warm_up=0, balance=False, weight_decay=0, clip=None, optimizer="adamw"
    )
    found = finetune(SMALL, DENSE, EXAMPLES, recipe).model
    by_hand = copy.deepcopy(SMALL).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=recipe.lr, weight_decay=0)
    distillation(by_hand(INPUTS), LOGITS, EXAMPLES.tensors[1], recipe).backward()
    optimizer.step()
    moved = False
    for name, value in by_hand.state_dict().items():
        assert torch.allclose(found.state_dict()[name].double(), value.double(), rtol=1e-3, atol=2e-5), name
        moved |= not torch.equal(value, SMALL.state_dict()[name])
    assert moved


def test_features_bring_blocks_nearer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))

        def forward(self, x):
            return self.head(self.block(x))

    dense = randomised(Net())
    plan = tenfold.plan(dense, tenfold.Ranks(share=0.3), example=INPUTS[:1], methods=[SVD()], freeze=["head*"])
    small, recipe = tenfold.apply(dense, plan), RECIPE.model_copy(update={"epochs": 6})

    def moved(model):
        return float((model.block(INPUTS) - dense.block(INPUTS)).detach().square().mean())

    without = finetune(small, dense, EXAMPLES, recipe).model
    with_features = finetune(small, dense, EXAMPLES, recipe.model_copy(update={"features": 10.0})).model
    assert moved(with_features) < 0.9 * min(moved(without), moved(small))


def test_bfloat16_stays_near_single_precision():
    single, half = (
        finetune(SMALL, DENSE, EXAMPLES, RECIPE.model_copy(update={"precision": precision})).model
        for precision in ("float32", "bfloat16")
    )
    assert drift(half) < 0.7 * drift(SMALL)
    assert 0 < apart(single, half) < 0.1 * apart(single, SMALL)


def test_mixup_mixes_neighbours_inputs_and_losses_alike(monkeypatch):
    x, labels = images(6, 3, 4, 4), torch.arange(6)
    assert neighbours(labels).tolist() == [1, 0, 3, 2, 5, 4]
    assert torch.allclose(mixed(x, 0.7), 0.7 * x + 0.3 * x[[1, 0, 3, 2, 5, 4]])
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda _: torch.tensor(0.7))
    seen = []

    def loss(outputs, wanted, target):
        seen.append((outputs.detach(), wanted, target))
        return outputs.square().sum() * 0 + len(seen)

    recipe = Recipe(epochs=1, batch=200, held_back=0, mixup=1.0, weight_decay=0)
    done = finetune(SMALL, DENSE, EXAMPLES, recipe, loss=loss)
    (_, wanted, target), (_, again, other) = seen
    assert torch.equal(wanted, again)
    assert torch.equal(other, neighbours(target))
    assert done.history[0].loss == pytest.approx(0.7 * 1 + 0.3 * 2)


def test_a_tracker_is_told_of_every_epoch():
    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "list", False, None

        def __init__(self):
            super().__init__()
            self.config, self.told = {}, []

        def store_init_configuration(self, values):
            self.config = values

        def log(self, values, step=None, **_):
            self.told.append((step, values["loss"]))

    tracker = Tracker()
    done = finetune(SMALL, DENSE, EXAMPLES, RECIPE, trackers=[tracker])
    assert tracker.told == [(epoch.epoch, epoch.loss) for epoch in done.history]
    assert tracker.config["lr"] == RECIPE.lr


SCRIPT = """
import sys
import torch
from safetensors.torch import save_file
sys.path.insert(0, {tests!r})
from test_train import DENSE, EXAMPLES, RECIPE, SMALL
from tenfold.train import Augment, _finetune, finetune
torch.set_num_threads(1)
_finetune._KEEP_S = 0.0
recipe = RECIPE.model_copy(update={{"epochs": {epochs}}})
done = finetune(SMALL, DENSE, EXAMPLES, recipe, augment=Augment(shift=1), folder={folder!r})
if int(__import__("os").environ.get("RANK", 0)) == 0:
    save_file({{name: t.clone() for name, t in done.model.state_dict().items()}}, {out!r})
"""


def script(place: Path, epochs: int) -> tuple[Path, Path]:
    out = place / "done.safetensors"
    file = place / "train.py"
    file.write_text(SCRIPT.format(tests=str(Path(__file__).parent), epochs=epochs, folder=str(place), out=str(out)))
    return file, out


def test_two_processes_give_what_one_gives(tmp_path):
    results = []
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for name, launch in (("one", []), ("two", torchrun)):
        (tmp_path / name).mkdir()
        file, out = script(tmp_path / name, 2)
        done = subprocess.run([sys.executable, *launch, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(load_file(out))
    one, two = results
    for name, value in one.items():
        assert torch.allclose(two[name].double(), value.double(), rtol=1e-4, atol=1e-5), name


@pytest.mark.heavy
def test_killed_at_ten_points_it_ends_the_same(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    file, whole = script(tmp_path / "whole", 40)
    start = time.monotonic()
    subprocess.run([sys.executable, str(file)], check=True, capture_output=True)
    seconds = time.monotonic() - start
    file, out = script(tmp_path / "killed", 40)
    drawn, kills = random.Random(0), 0
    while not out.exists():
        process = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if kills < 10:
            time.sleep(seconds * drawn.uniform(0.3, 0.6))
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 10
    left, right = load_file(whole), load_file(out)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_balanced_factors_make_the_same_product():
    small = copy.deepcopy(SMALL).double()
    factored = [module for module in small.modules() if isinstance(module, tenfold.Factored)]
    weights = [module.weight.clone() for module in factored]
    with torch.no_grad():
        factored[0][0].weight *= 100
        factored[0][-1].weight /= 100
    balance(small)
    for module, weight in zip(factored, weights, strict=True):
        assert torch.allclose(module.weight, weight, rtol=1e-9, atol=1e-12)
        norms = torch.stack([factor.weight.detach().norm() for factor in module])
        assert float(norms.max() / norms.min()) < 1.01
    single = tenfold.apply(DENSE, tenfold.plan(DENSE, tenfold.Ranks(rank=3), example=INPUTS[:1], methods=[SVD()]))
    balance(single)
    first, then = (factor.weight.flatten(2) for factor in single[5])
    assert torch.allclose(first.flatten(1).norm(dim=1), then.norm(dim=(0, 2)))


def test_decay_is_that_of_the_product():
    plan = tenfold.plan(DENSE, tenfold.Ranks(share=1.0), example=images(1, 3, 8, 8), methods=[SVD()])
    full = tenfold.apply(DENSE, plan)
    assert float(decayed(full)) == pytest.approx(float(decayed(DENSE)), rel=1e-5)
    wanted = sum(float(p.detach().square().sum()) for p in DENSE.parameters() if p.dim() > 1) / 2
    assert float(decayed(DENSE)) == pytest.approx(wanted, rel=1e-5)


def test_the_distance_is_a_divergence_at_a_temperature():
    outputs, wanted, labels = images(6, 5), images(6, 5, seed=1), torch.tensor([0, 1, 2, 3, 4, 0])
    recipe = Recipe(distil=0.7, temperature=3.0)
    p, q = F.softmax(wanted / 3, 1), F.softmax(outputs / 3, 1)
    apart = 9 * (p * (p.log() - q.log())).sum(1).mean()
    expected = 0.7 * apart + 0.3 * F.cross_entropy(outputs, labels)
    assert torch.allclose(distillation(outputs, wanted, labels, recipe), expected)
    maps = images(2, 5, 3, 3)
    same_maps = distillation(maps, maps, torch.zeros(2, 3, 3, dtype=torch.long), Recipe(distil=1.0))
    assert float(same_maps) == pytest.approx(0.0, abs=1e-6)


def test_augmentation_follows_from_the_numbers():
    x = images(5, 3, 6, 7)
    still = torch.tensor([[2 / 5 + 0.01, 2 / 5 + 0.01, 0.9, 0.0, 0.0]]).expand(5, 5)
    assert torch.equal(Augment(shift=2)(x, still), x)
    flipped = still.clone()
    flipped[:, 2] = 0.1
    assert torch.equal(Augment(shift=2)(x, flipped), x.flip(3))
    moved = still.clone()
    moved[:, 0] = 0.0  # the crop starts two rows above
    assert torch.equal(Augment(shift=2)(x, moved)[:, :, 2:], x[:, :, :-2])
    assert not Augment(shift=2)(x, moved)[:, :, :2].any()
    cut = still.clone()
    cut[:, 3], cut[:, 4] = 0.5, 0.5
    assert int((Augment(shift=2, cutout=2)(x, cut) == 0).sum()) == 5 * 3 * 1
    noise = torch.rand(5, 8)
    assert torch.equal(Augment()(x, noise)[2:3], Augment()(x[2:3], noise[2:3]))


def test_the_rate_rises_and_falls():
    rates = [Recipe(lr=1.0, warm_up=0.1).lr_at(step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 10
    assert max(rates) == 1
    assert rates[0] == pytest.approx(1 / 11)
    assert 0 < rates[-1] < 0.01


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


def test_data_and_recipes_that_do_not_fit_are_refused():
    with pytest.raises(TenfoldError, match="give a data set with a length"):
        finetune(SMALL, DENSE, Stream(), RECIPE)
    with pytest.raises(TenfoldError, match="evaluate is 3; give a function"):
        finetune(SMALL, DENSE, EXAMPLES, RECIPE, evaluate=3)
    with pytest.raises(TenfoldError, match="batch of 500 is more than the 160 examples"):
        finetune(SMALL, DENSE, EXAMPLES, RECIPE.model_copy(update={"batch": 500}))
    with pytest.raises(TenfoldError, match="lr"):
        Recipe(lr=-1)
    with pytest.raises(TenfoldError, match=r"a batch of 33 on 1 process.* leaves one over; make it a multiple of 2"):
        finetune(SMALL, DENSE, EXAMPLES, RECIPE.model_copy(update={"batch": 33, "mixup": 1.0}))
    with pytest.raises(TenfoldError, match="mixup needs floating-point inputs"):
        mixed(torch.arange(4), 0.5)
    with pytest.raises(TenfoldError, match="no labels, and distil is 0; set distil=1"):
        finetune(SMALL, DENSE, [INPUTS[i] for i in range(64)], RECIPE.model_copy(update={"distil": 0.0}))


ROUNDS = [Round(params=0.6, recipe=RECIPE.model_copy(update={"epochs": 1})), Round(params=0.4, recipe=RECIPE)]
SETTING = {"example": INPUTS[:1], "calibration": [INPUTS[:64], INPUTS[64:128]], "methods": [SVD()]}


def test_rounds_compress_what_the_network_has_become(tmp_path):
    done = progressive(DENSE, ROUNDS, EXAMPLES, **SETTING)
    size = sum(p.numel() for p in done.model.parameters())
    assert 0.35 < size / sum(p.numel() for p in DENSE.parameters()) <= 0.4
    assert [len(history) for history in done.history] == [1, 2]
    at_once = progressive(DENSE, ROUNDS[1:], EXAMPLES, **SETTING)
    assert not same(multiplied_out(done.model, DENSE), multiplied_out(at_once.model, DENSE))
    assert drift(done.model) < drift(tenfold.apply(DENSE, done.plan))
    tenfold.save(tmp_path / "saved", done.model, done.plan)
    assert same(tenfold.load(tmp_path / "saved", DENSE), done.model)

    augment = StopsAt(8)  # in the second round
    with pytest.raises(Stopped):
        progressive(DENSE, ROUNDS, EXAMPLES, **SETTING, augment=augment, folder=tmp_path / "run")
    assert same(
        progressive(DENSE, ROUNDS, EXAMPLES, **SETTING, augment=augment, folder=tmp_path / "run").model, done.model
    )


def test_rounds_that_cannot_be_are_refused():
    with pytest.raises(TenfoldError, match="no rounds"):
        progressive(DENSE, [], EXAMPLES, **SETTING)
    with pytest.raises(TenfoldError, match="no limit"):
        progressive(DENSE, [ROUNDS[0], Round()], EXAMPLES, **SETTING)


def test_factors_multiply_out_to_the_dense_network():
    dense = multiplied_out(SMALL, DENSE)
    assert [type(module) for module in dense.modules()] == [type(module) for module in DENSE.modules()]
    with torch.no_grad():
        assert torch.allclose(dense(INPUTS), SMALL(INPUTS), rtol=1e-4, atol=1e-5)
