"""Exported files: they run elsewhere, give the model's outputs, and stack with int8."""

import subprocess
import sys
import zipfile

import numpy as np
import onnxruntime
import pytest
import torch
from nets import TokenNet, images, randomised, small_cnn
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

import tenfold
from tenfold import Budget, Plan, TenfoldError
from tenfold.methods import DEFAULT


class EveryMethod(nn.Module):
    """One convolution and one Linear for each method, each with a norm after it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in DEFAULT)
        self.conv_norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in DEFAULT)
        self.linears = nn.ModuleList(nn.Linear(8, 8) for _ in DEFAULT)
        self.linear_norms = nn.ModuleList(nn.BatchNorm1d(8) for _ in DEFAULT)

    def forward(self, x):
        for layer, norm in zip(self.convolutions, self.conv_norms, strict=True):
            x = norm(layer(x)).relu()
        x = x.mean((2, 3))
        for layer, norm in zip(self.linears, self.linear_norms, strict=True):
            x = norm(layer(x)).relu()
        return x


def every_method():
    """The network with each method in two of its layers, and one image."""
    model, x = randomised(EveryMethod()), images(1, 8, 9, 7)
    plan = Plan()
    for number, method in enumerate(DEFAULT):
        frozen = [f"{kind}.{n}" for kind in ("convolutions", "linears") for n in range(len(DEFAULT)) if n != number]
        plan = plan + tenfold.plan(model, tenfold.Ranks(share=0.7), example=x, methods=[method], freeze=frozen)
    return tenfold.apply(model, plan), x


def in_onnxruntime(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})


def test_every_method_in_onnx_at_any_batch(tmp_path):
    model, x = every_method()
    done = tenfold.export(model, x, tmp_path / "net.onnx")
    assert done.any_batch
    assert done.relative <= 1e-4
    more = images(5, 8, 9, 7, seed=3)
    assert np.allclose(in_onnxruntime(done.file, more)[0], model(more).detach(), atol=1e-4)


def test_every_method_in_pt2_without_this_package(tmp_path):
    model, x = every_method()
    done = tenfold.export(model, x, tmp_path / "net.pt2")
    assert done.any_batch
    assert done.relative <= 1e-4
    more = images(3, 8, 9, 7)
    torch.save((more, model(more).detach()), tmp_path / "pair.pt")
    code = f"""
import sys, torch
sys.modules["tenfold"] = None
x, expected = torch.load({str(tmp_path / "pair.pt")!r}, weights_only=True)
found = torch.export.load({done.file!r}).module()(x)
assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_norms_are_folded_only_where_nothing_else_reads_the_layer(tmp_path):
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False)
            self.t = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
            self.norm_a, self.norm_b, self.norm_t = (
                nn.BatchNorm2d(4),
                nn.BatchNorm2d(4, affine=False),
                nn.BatchNorm2d(6),
            )

        def forward(self, x):
            y = self.a(x)
            y = y + self.norm_a(y)
            return self.norm_t(self.t(self.norm_b(self.b(y))))

    model, x = randomised(Reads()), images(2, 3, 6, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    done = tenfold.export(model, x, tmp_path / "net.pt2")
    assert done.folded == 2  # of b and t
    assert done.relative <= 1e-6
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_named_inputs_and_nested_outputs(tmp_path, ending):
    model = randomised(TokenNet())
    ids = torch.arange(5)[None]
    small = tenfold.compress(model, Budget(params=0.7), example={"input_ids": ids}).model
    done = tenfold.export(small, {"input_ids": ids}, tmp_path / f"net.{ending}")
    assert done.relative <= 1e-4
    assert done.any_batch


def test_lookups_in_trains_take_any_batch(tmp_path):
    model, ids = randomised(nn.Sequential(nn.Embedding(99, 64), nn.Linear(64, 10))), torch.arange(24).reshape(2, 12)
    small = tenfold.apply(
        model, tenfold.plan(model, tenfold.Ranks(share=0.5), example=ids, methods=[tenfold.methods.TensorTrain()])
    )
    assert tenfold.export(small, ids, tmp_path / "net.pt2").any_batch


def test_a_model_that_takes_one_batch_size_only_is_exported_for_that(tmp_path):
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x):
            return self.layer(x.reshape(1, 12))

    done = tenfold.export(randomised(One()), images(1, 3, 4), tmp_path / "net.pt2")
    assert not done.any_batch


def test_refusals_leave_nothing_behind(tmp_path):
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    with pytest.raises(TenfoldError, match=r"\.onnx or \.pt2"):
        tenfold.export(small_cnn(), images(1, 3, 16, 16), tmp_path / "net.pth")
    with pytest.raises(TenfoldError, match=r"torch\.export cannot export"):
        tenfold.export(Decides(), images(1, 4), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_int8_by_onnxruntime_stacks(tmp_path):
    moved: tuple[list[float], list[float]] = ([], [])
    for seed in range(5):
        dense, x = randomised(small_cnn(), seed=seed), images(4, 3, 16, 16, seed=seed)
        small, sizes = tenfold.compress(dense, Budget(params=0.6), example=x).model, []
        for model, those in zip((dense, small), moved, strict=True):
            done = tenfold.export(model, x, tmp_path / "net.onnx")
            # A scale for each channel: terms of CP are of very different sizes.
            quantize_dynamic(done.file, tmp_path / "int8.onnx", per_channel=True, weight_type=QuantType.QUInt8)
            expected = model(x).detach()
            (found,) = in_onnxruntime(tmp_path / "int8.onnx", x)
            those.append(float((torch.from_numpy(found) - expected).norm() / expected.norm()))
            sizes.append((tmp_path / "int8.onnx").stat().st_size)
        assert sizes[1] < sizes[0]
    assert sum(moved[1]) < 3 * sum(moved[0])  # three factors in a row round where one layer did


def test_int8_by_torchao_stacks():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = randomised(nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64)))
    x = images(4, 128)
    small = tenfold.compress(model, Budget(params=0.6), example=x).model
    expected = small(x).detach()
    quantize_(small, Int8WeightOnlyConfig())
    found = small(x).detach()
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.05


def test_a_folder_without_a_reference_is_loaded_from_its_pt2(tmp_path):
    x = images(1, 3, 16, 16)
    result = tenfold.compress(randomised(small_cnn()), Budget(params=0.6), example=x)
    result.save(tmp_path / "small")
    with pytest.raises(TenfoldError, match=r"model\.pt2"):
        tenfold.load(tmp_path / "small")
    tenfold.export(result.model, x, tmp_path / "small" / "model.pt2")
    assert torch.allclose(tenfold.load(tmp_path / "small")(x), result.model(x), atol=1e-5)


def test_a_pt2_with_pickles_in_it_is_refused(tmp_path):
    x = images(1, 3, 16, 16)
    result = tenfold.compress(randomised(small_cnn()), Budget(params=0.6), example=x)
    result.save(tmp_path / "small")
    program = torch.export.export(result.model, (x,))
    torch.export.save(program, tmp_path / "plain.pt2")
    _with_pickled_weights(tmp_path / "plain.pt2", tmp_path / "small" / "model.pt2")
    with pytest.raises(TenfoldError, match="pickle"):
        tenfold.load(tmp_path / "small")


def _with_pickled_weights(source, target):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("_weights_config.json"):
                data = data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            new.writestr(name, data)
