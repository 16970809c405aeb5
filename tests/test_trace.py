"""Which layers are free, and that the model is left as it was."""

import copy
import tempfile

import pytest
import torch
from nets import TokenNet, images, randomised, small_cnn
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune, weight_norm

import tenfold
from tenfold import Budget, Plan, Ranks, TenfoldError
from tenfold.methods import SVD, FilterPruning


def left_dense(model, x, methods=None):
    found = tenfold.options(model, example=x, methods=methods)
    return found.left_dense(found.plan(Ranks(share=1.0)))


class Standardised(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias)


class Reader(nn.Module):
    """Reads a layer's weight without calling it, as fused attention does."""

    def __init__(self):
        super().__init__()
        self.called, self.read, self.idle = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(self.called(x), self.read.weight, self.read.bias)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.alias = self.first

    def forward(self, x):
        return self.alias(self.first(x))


def test_a_weight_read_from_outside_stays_dense():
    reasons = left_dense(Reader(), images(2, 8))
    assert reasons == {
        "read": "its weight is read by other code than its own forward",
        "idle": "it is not called while the example runs",
    }


def test_tied_weights_stay_dense():
    reasons = left_dense(TokenNet(), {"input_ids": torch.ones(1, 5, dtype=torch.int64)})
    assert set(reasons) == {"embed", "head"}
    assert "shared" in reasons["head"]


def test_a_layer_used_twice_is_replaced_under_both_names():
    model, x = Twice().eval(), images(2, 8)
    small = tenfold.apply(model, tenfold.plan(model, Ranks(share=1.0), example=x))
    assert small.first is small.alias
    assert isinstance(small.first, tenfold.Factored)
    assert torch.allclose(small(x), model(x), atol=1e-5)
    assert tenfold.options(model, example=x).dense.macs == 2 * 2 * 64


def test_subclasses_are_left_dense_and_named():
    model = nn.Sequential(Standardised(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert left_dense(model, images(1, 3, 8, 8)) == {"0": "no chosen method serves test_trace.Standardised"}


def test_hooks_and_replaced_forwards_keep_a_layer_dense():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), weight_norm(nn.Linear(8, 8)))
    model[0].register_forward_hook(lambda *_: None)
    model[1].forward = lambda x: x
    reasons = left_dense(model, images(2, 8))
    assert "hooks" in reasons["0"]
    assert "replaced" in reasons["1"]
    assert "hooks" in reasons["2"]
    assert model[1].forward(3) == 3


def test_an_embedding_that_scales_its_rows_stays_dense():
    model = nn.Sequential(nn.Embedding(20, 12, max_norm=1.0), nn.Linear(12, 4))
    assert "max_norm" in left_dense(model, torch.arange(5)[None])["0"]


@pytest.mark.parametrize(
    "register",
    [
        nn.Module.register_forward_pre_hook,
        nn.Module.register_forward_hook,
        nn.Module.register_full_backward_pre_hook,
        nn.Module.register_full_backward_hook,
    ],
)
def test_hooks_of_all_kinds_keep_a_layer_dense(register):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    register(model[0], lambda *_: None)
    assert "hooks" in left_dense(model, images(2, 8))["0"]


class Gaining(nn.Module):
    """Reads what it has set on its layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.one.gain, self.two.gain = 2.0, nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.two(self.one(x) * self.one.gain) * self.two.gain


def test_what_other_code_has_set_on_layers_can_be_read():
    model, x = Gaining().eval(), images(8, 8)
    result = tenfold.compress(model, Ranks(share=1.0), example=x)
    assert result.report.left_dense == {
        "two": "it holds more than a weight and a bias, which a replacement would lose: gain"
    }
    assert result.model.one.gain == 2.0
    assert torch.allclose(result.model(x), model(x), atol=1e-5)


class Inferring(nn.Sequential):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


def test_inference_mode_of_the_model_or_around_it():
    layers, x = (nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)), images(64, 16)
    model, setting = randomised(nn.Sequential(*layers)), {"example": x, "calibration": [x]}
    assert tenfold.compress(Inferring(*layers).eval(), Ranks(share=0.5), **setting, recover="none").plan.steps
    wanted = tenfold.compress(model, Ranks(share=0.5), **setting)
    with torch.inference_mode():
        result = tenfold.compress(model, Ranks(share=0.5), example=x.clone(), calibration=[x.clone()])
    assert result.plan == wanted.plan
    assert torch.equal(result.model(x), wanted.model(x))
    assert not any(parameter.is_inference() for parameter in result.model.parameters())


@pytest.mark.parametrize("parametrise", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_layers_are_folded_on_the_copy(parametrise):
    model = nn.Sequential(parametrise(nn.Linear(8, 12)), nn.ReLU(), nn.Linear(12, 4)).eval()
    x = images(2, 8)
    small = tenfold.compress(model, Ranks(share=1.0), example=x).model
    assert isinstance(small[0], tenfold.Factored)
    assert torch.allclose(small(x), model(x), atol=1e-5)
    assert nn.utils.parametrize.is_parametrized(model[0])


class Remembering(nn.Sequential):
    """Keeps what it computed, with its gradients, as hooks that compute weights do."""

    def forward(self, x):
        self.seen = [super().forward(x)]
        return self.seen[0]


@pytest.mark.parametrize("hook", [weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)])
def test_models_that_hold_what_they_computed_with_gradients_are_copied(hook, tmp_path):
    model, x = Remembering(hook(nn.Linear(8, 8)), nn.Linear(8, 8)).eval(), images(8, 8)
    wanted = model(x)  # with gradients
    result = tenfold.compress(model, Ranks(share=0.5), example=x, calibration=[x])
    assert "hooks" in result.report.left_dense["0"]
    assert torch.equal(tenfold.apply(model, Plan())(x), wanted)
    assert tenfold.export(model, x, tmp_path / "net.pt2").relative < 1e-6


class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small_cnn()

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


def test_layers_under_autocast_cost_what_they_cost_without():
    model, x = randomised(Casting()), images(2, 3, 16, 16)
    plain = tenfold.options(model.net, example=x)
    with torch.autocast("cpu", torch.bfloat16):
        around = tenfold.options(model.net, example=x)
    for found in (around, tenfold.options(model, example=x)):
        assert [ladder.costs.tolist() for ladder in found.ladders] == [
            ladder.costs.tolist() for ladder in plain.ladders
        ]
    assert tenfold.compress(model, Budget(macs=0.5), example=x, methods=[FilterPruning()]).plan.steps


class Awkward(nn.Module):
    """Owns parameters beside its layers, has a layer under two names, feeds a view of a parameter to a layer, looks at
    values, and makes a tensor where it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.latent = nn.Parameter(torch.ones(1, 1, 16)), nn.Parameter(torch.ones(1, 1, 16))
        self.a, self.q = nn.Linear(16, 16), nn.Linear(16, 64)
        self.b = self.a

    def forward(self, x):
        assert x.abs().max().item() > 0
        return self.b(self.a(x + self.token)) @ torch.eye(16) + self.q(self.latent.expand(len(x), -1, -1)).mean()


def test_models_that_do_more_than_call_their_layers():
    model, x = Awkward().eval(), images(2, 3, 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = tenfold.compress(model, Budget(params=0.8), example=x)
    assert result.report.dense.macs == 2 * 6 * 16 * 16 + 6 * 16 * 16 + 2 * 16 * 64
    assert result.plan.steps
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_wrappers_are_taken_off():
    model, x = randomised(small_cnn()), images(1, 3, 16, 16)
    plan = tenfold.plan(model, Budget(params=0.5), example=x)
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert tenfold.plan(wrapped, Budget(params=0.5), example=x) == plan
        assert torch.equal(tenfold.apply(wrapped, plan)(x), tenfold.apply(model, plan)(x))


def test_sharded_models_are_refused_by_name():
    class FullyShardedDataParallel(nn.Sequential):
        pass

    with pytest.raises(TenfoldError, match="FSDP"):
        tenfold.options(FullyShardedDataParallel(nn.Linear(3, 3)), example=images(1, 3))


class Restless(nn.Module):
    """Draws random numbers and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.net = small_cnn()
        self.register_buffer("calls", torch.zeros(()))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.calls += 1
        self.noise = torch.rand(1)
        return self.drop(self.net(x))


def state_of(model):
    return {
        "tensors": {name: t.clone() for name, t in model.state_dict().items()},
        "identities": [id(t) for t in [*model.parameters(), *model.buffers()]],
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()],
        "random": torch.get_rng_state(),
        "fused": torch.backends.mha.get_fastpath_enabled(),
        "grad": torch.is_grad_enabled(),
    }


def refused(model, x):
    with pytest.raises(TenfoldError):
        tenfold.options(model, example=x)


def exported(model, x):
    with tempfile.TemporaryDirectory() as folder:
        tenfold.export(model, x, f"{folder}/net.pt2")
        tenfold.export(model, x, f"{folder}/net.onnx")


def recovered(model, x):
    small = tenfold.apply(model, tenfold.plan(model, Budget(params=0.5), example=x))
    for how in ("refit", "blocks"):
        tenfold.recover(small, model, [x, x], how=how)


CALLS = {
    "options": lambda m, x: tenfold.options(m, example=x).ladders,
    "compress": lambda m, x: tenfold.compress(
        m, Budget(params=0.5), example=x, calibration=[x, x], evaluate=lambda net: float(net(x).mean())
    ),
    "apply": lambda m, x: tenfold.apply(m, tenfold.plan(m, Budget(macs=0.5), example=x)),
    "measure": lambda m, x: tenfold.measure(m, x, latency=True),
    "reestimate_norms": lambda m, x: tenfold.reestimate_norms(m, [x]),
    "calibrate": lambda m, x: tenfold.calibrate(m, [x, x]),
    "recover": recovered,
    "verify": lambda m, x: tenfold.verify(m, m, [x]),
    "export": exported,
    "a model that fails": lambda m, x: refused(m, x[:, :2]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_bit_identical_after_every_call(call, training):
    model, x = Restless().train(training), images(4, 3, 16, 16)
    model.net[1].eval()
    before, source = state_of(model), copy.deepcopy(x)
    CALLS[call](model, x)
    after = state_of(model)
    for key, value in before["tensors"].items():
        assert torch.equal(value, after["tensors"][key]), key
    assert torch.equal(before.pop("random"), after.pop("random"))
    for key in before.keys() - {"tensors"}:
        assert before[key] == after[key], key
    assert torch.equal(x, source)


def test_results_keep_dtype_mode_and_frozen_parameters():
    model, x = small_cnn().to(torch.bfloat16).train(), images(2, 3, 16, 16).to(torch.bfloat16)
    model[5].weight.requires_grad_(False)
    small = tenfold.apply(model, tenfold.plan(model, Ranks(share=0.5), example=x, methods=[SVD()]))
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert all(module.training for module in small.modules())
    assert {name: p.requires_grad for name, p in small[5].named_parameters()} == {
        "0.weight": False,
        "1.weight": False,
        "1.bias": True,
    }
    assert small[3].training
