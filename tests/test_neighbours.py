"""Beside other tools: adapters, torch.compile, other dtypes, devices and memory formats, every shape of input."""

import copy
from dataclasses import dataclass

import pytest
import torch
from nets import images, randomised, small_cnn
from torch import nn
from torch.fx.experimental.optimization import fuse

import tenfold
from tenfold import Budget, Ranks, TenfoldError, TenfoldWarning, _blocks


class Feedforward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(64, 256), nn.Linear(256, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.down(self.up(x).relu()))


def test_adapters_stay_around_a_compressed_layer(tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = peft.get_peft_model(Feedforward(), peft.LoraConfig(target_modules=["up", "down"], r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would hide the adapters
            nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(0))
    model, x = model.eval(), images(3, 64)
    found = tenfold.options(model, example=x)
    same = tenfold.apply(model, found.plan(Ranks(share=1.0)))
    assert torch.allclose(same(x), model(x), atol=1e-5)
    plan = found.plan(Budget(params=0.6))
    small = tenfold.apply(model, plan)
    assert {step.layers[0] for step in plan.steps} == {f"base_model.model.{name}.base_layer" for name in ("up", "down")}
    small.train()(x).square().sum().backward()
    trained = {name for name, parameter in small.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tenfold.save(tmp_path / "small", small, plan)
    assert torch.equal(tenfold.load(tmp_path / "small", model)(x), small.eval()(x))


@pytest.mark.parametrize("method", tenfold.methods.DEFAULT, ids=str)
def test_another_runtime_reads_the_exported_file(tmp_path, method):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    model, x = randomised(small_cnn()), images(2, 3, 16, 16)
    small = tenfold.compress(model, Budget(params=0.6), example=x, methods=[method]).model
    tenfold.export(small, x, tmp_path / "small.onnx")
    exactly = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(tmp_path / "small.onnx", "CPU", exactly)
    assert torch.allclose(torch.from_numpy(compiled(x.numpy())[0]), small(x), atol=1e-5)


def test_a_compiled_model_goes_in_and_a_small_one_compiles():
    model, x = randomised(small_cnn()), images(2, 3, 16, 16)
    small = tenfold.compress(torch.compile(model), Budget(params=0.6), example=x).model
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), small(x), atol=1e-5)


def test_a_forward_that_asks_a_layer_for_its_data_type_rebuilds_no_weight():
    """As that of T5 does, three times; compiled, too."""

    class Asking(Feedforward):
        def forward(self, x):
            hidden = self.up(x).relu()
            if isinstance(self.down.weight, torch.Tensor) and hidden.dtype != self.down.weight.dtype:
                hidden = hidden.to(self.down.weight.dtype)
            return self.head(self.down(hidden))

    asking, plain, x = Asking().eval(), Feedforward().eval(), images(3, 64)
    plain.load_state_dict(asking.state_dict())
    small = tenfold.compress(asking, Budget(params=0.4), example=x).model
    silent = tenfold.compress(plain, Budget(params=0.4), example=x).model
    assert isinstance(small.down, tenfold.Factored)
    assert tenfold.measure(small, x).macs == tenfold.measure(silent, x).macs
    assert torch.equal(small(x), silent(x))
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), small(x), atol=1e-6)
    assert torch.allclose(torch.export.export(small, (x,)).module()(x), small(x), atol=1e-6)


def test_replicas_of_data_parallel_run():
    """They hold tensors in the place of parameters; without several GPUs there are none, so it is done by hand here."""
    x, dense = images(3, 64), nn.Linear(64, 48)
    small = tenfold.apply(nn.Sequential(dense), tenfold.plan(nn.Sequential(dense), Ranks(share=0.3), example=x))
    expected, weight = small(x), small[0].rebuilt()
    for factor in small[0]:
        values = dict(factor._parameters)
        factor._parameters.clear()
        vars(factor).update({name: None if value is None else value.detach() for name, value in values.items()})
    assert torch.equal(small(x), expected)
    assert torch.equal(small[0].weight, weight)


def test_torch_folds_norms_into_factors():
    model, x = randomised(small_cnn()), images(2, 3, 16, 16)
    small = tenfold.compress(model, Budget(params=0.6), example=x).model
    folded = fuse(small)
    assert any(isinstance(module, nn.BatchNorm2d) for module in small.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(folded(x), small(x), atol=1e-5)


def test_a_network_in_distributed_training():
    """One process is enough to see that the wrapper comes off, and that the small network trains in one again."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrap = nn.parallel.DistributedDataParallel
        model, x = randomised(small_cnn()), images(2, 3, 16, 16)
        small = tenfold.compress(wrap(model), Budget(params=0.6), example=x).model
        assert type(small) is nn.Sequential
        wrap(small.train())(x).square().sum().backward()
        assert all(p.grad is not None for p in small.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_in_and_out(tmp_path, dtype):
    model, x = randomised(small_cnn()).to(dtype), images(2, 3, 16, 16).to(dtype)
    result = tenfold.compress(model, Budget(params=0.6), example=x)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    same = tenfold.apply(model, tenfold.plan(model, Ranks(share=1.0), example=x, methods=[tenfold.methods.SVD()]))
    assert torch.allclose(same(x).double(), model(x).double(), atol=100 * torch.finfo(dtype).eps)
    result.save(tmp_path / "small")
    assert torch.equal(tenfold.load(tmp_path / "small", model)(x), result.model(x))


def test_channels_last_in_and_out():
    model, x = randomised(small_cnn()), images(2, 3, 16, 16)
    plan = tenfold.plan(model, Budget(params=0.6), example=x)
    plain = tenfold.apply(model, plan)(x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    small = tenfold.apply(last, plan)
    found = small[:6](x.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(small(x), plain, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_on_a_gpu():
    model, x = randomised(small_cnn()).cuda(), images(2, 3, 16, 16).cuda()
    result = tenfold.compress(model, Budget(params=0.6), example=x, calibration=[x])
    assert all(p.is_cuda for p in result.model.parameters())
    assert result.report.device == torch.cuda.get_device_name(0)


def test_part_of_a_model_alone():
    """A backbone is compressed by itself and put back, or the rest is frozen by its prefix."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = small_cnn(), nn.Linear(10, 4)

        def forward(self, x):
            return self.head(self.backbone(x))

    model, x = randomised(Whole()), images(2, 3, 16, 16)
    put_back = copy.deepcopy(model)
    put_back.backbone = tenfold.compress(model.backbone, Budget(params=0.5), example=x).model
    frozen = tenfold.plan(model, Budget(params=0.6), example=x, freeze=["head"])
    assert all(step.layers[0].startswith("backbone.") for step in frozen.steps)
    assert put_back(x).shape == tenfold.apply(model, frozen)(x).shape == (2, 4)


def test_tuples_in_and_nested_outputs_out():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 48), nn.Linear(32, 48)

        def forward(self, x, pair):
            return {"both": [self.a(x), (self.b(pair[0]), pair[1])], "count": 2}

    model = randomised(Pair())
    example = (images(3, 32), (images(3, 32, seed=1), images(1)))
    result = tenfold.compress(model, Budget(params=0.5), example=example)
    assert len(result.plan.steps) == 2
    assert 0 < result.report.drift.relative < 1
    assert result.model(*example)["count"] == 2


@dataclass
class Answer:
    logits: torch.Tensor
    label: str = "digits"


class Returning(nn.Module):
    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


@pytest.mark.parametrize("form", [Answer, lambda y: [Answer(y), "more"]])
def test_dataclasses_of_outputs_are_looked_into(monkeypatch, form):
    monkeypatch.setattr(_blocks, "_STEPS", 4)
    monkeypatch.setattr(_blocks, "_LOOK", 2)
    plain, x = Returning(randomised(small_cnn()), nn.Identity()).eval(), images(8, 3, 16, 16)
    net = Returning(plain.net, form).eval()
    found, expected = (
        tenfold.compress(each, Budget(params=0.5), example=x[:1], calibration=[x], recover="blocks")
        for each in (net, plain)
    )
    assert found.plan.steps == expected.plan.steps
    assert found.report.drift == expected.report.drift
    assert found.report.drift.relative > 0.01
    assert torch.equal(found.model.net(x), expected.model.net(x))


def test_outputs_in_which_no_tensor_is_found_are_refused():
    net = Returning(small_cnn(), lambda y: torch.distributions.Categorical(logits=y))
    with pytest.raises(TenfoldError, match="no tensor is found in what the model returns, a Categorical; wrap it"):
        tenfold.plan(net, Budget(params=0.5), example=images(2, 3, 16, 16))


def test_a_forward_without_gradients_leaves_factors_as_they_were_fitted():
    class Silent(Returning):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    net, x = Silent(randomised(small_cnn()), nn.Identity()).eval(), images(8, 3, 16, 16)
    fitted = tenfold.compress(net, Budget(params=0.5), example=x[:1], calibration=[x], recover="none")
    with pytest.warns(TenfoldWarning, match="no gradient reaches the factors"):
        found = tenfold.recover(fitted.model, net, [x], how="blocks")
    assert torch.equal(found(x), fitted.model(x))


def test_drift_of_outputs_that_are_no_floating_point_numbers():
    net, x = Returning(randomised(small_cnn()), lambda y: (10 * y).round().long()).eval(), images(8, 3, 16, 16)
    report = tenfold.compress(net, Budget(params=0.4), example=x[:1], calibration=[x]).report
    assert report.drift.relative > 0.01
