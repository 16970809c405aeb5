"""Costs against arithmetic that a person can check, and against whole-model measurements."""

import re
from math import prod

import pytest
import torch
from nets import TokenNet, images, small_cnn
from torch import nn

import tenfold
from tenfold import _cost


def test_parameters_multiply_adds_and_bytes_of_a_small_net():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 16, 10))
    cost = tenfold.measure(net, images(2, 3, 4, 4))
    assert cost.params == (3 * 8 * 9 + 8) + 2 * 8 + (128 * 10 + 10)
    assert cost.macs == 2 * (16 * 3 * 8 * 9 + 128 * 10)
    assert cost.bytes == 4 * cost.params + 4 * 2 * 8 + 8  # running mean and variance, and an int64 counter
    assert cost.milliseconds is None


def test_the_layers_add_up_to_the_model():
    found = tenfold.options(small_cnn(), example=images(3, 3, 16, 16))
    assert sum(cost[1] for cost in found.dense_costs.values()) == found.dense.macs


def test_peak_activation_is_the_most_that_lives_at_once():
    class Net(nn.Module):
        def forward(self, x):
            a = x + 1  # 4000 bytes live
            b = a + 1  # 8000
            del a
            c = torch.cat([b, b, b])  # 4000 + 12000
            del b
            return c.sum()  # 12000 + 4

    assert tenfold.measure(Net(), torch.zeros(1000)).activation_bytes == 16000


@pytest.mark.parametrize("kept", ["to_sparse_coo", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_tensors_count_what_they_hold(kept):
    class Net(nn.Module):
        def forward(self, x):
            return getattr(x, kept)() @ torch.eye(8)

    x = torch.zeros(8, 8).index_put_((torch.arange(8), torch.arange(8)), torch.tensor(1.0))
    indices = 2 * 8 * 8 if kept == "to_sparse_coo" else (9 + 8) * 8  # int64
    assert tenfold.measure(Net(), x).activation_bytes >= 8 * 4 + indices + 2 * 8 * 8 * 4


def test_attention_is_counted():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    macs = tenfold.measure(layer, images(1, 5, 16)).macs
    assert macs == 5 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 5 * 5 * 16


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_counted(kind):
    """In float64 torch runs them as matrix products, in float32 fused ones where it has them."""
    net, x = kind(5, 7, 2, bidirectional=True, batch_first=True), images(3, 4, 5)
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    macs = 2 * gates * 7 * (5 + 7 + 2 * 7 + 7) * 3 * 4
    assert tenfold.measure(net, x).macs == macs
    assert tenfold.measure(net.double(), x.double()).macs == macs


@pytest.mark.parametrize("fused", [torch.ops.aten._cudnn_rnn, torch.ops.aten.miopen_rnn])
def test_recurrent_layers_of_gpus_are_counted(fused):
    net = nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3)
    matrices = [weight.shape for weights in net.all_weights for weight in weights if weight.dim() == 2]
    found = _cost._FLOPS[fused](torch.Size([3, 4, 5]), [weight.shape for group in net.all_weights for weight in group])
    assert found == 2 * 3 * 4 * sum(map(prod, matrices)) == 2 * 12 * 2 * (28 * (5 + 3) + 21 + 28 * (6 + 3) + 21)


def test_keyword_inputs_and_latency():
    cost = tenfold.measure(TokenNet(), {"input_ids": torch.ones(1, 4, dtype=torch.int64)}, latency=True)
    assert cost.milliseconds > 0
    model = small_cnn().train()
    assert tenfold.measure(model, images(1, 3, 8, 8), latency=True, engine="onnxruntime").milliseconds > 0
    assert model.training
    with pytest.raises(tenfold.TenfoldError, match="no engine 'tflite'"):
        tenfold.measure(model, images(1, 3, 8, 8), engine="tflite")


def test_a_smaller_layer_is_measured_faster():
    """Four times fewer multiply-adds, far from noise."""
    big, small = (nn.Sequential(nn.Linear(1024, width), nn.Linear(width, 1024)) for width in (2048, 128))
    report = tenfold.verify(small, big, [images(64, 1024)])
    assert report.small.milliseconds < report.dense.milliseconds


def test_verify_measures_drift():
    class Shift(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = nn.Parameter(torch.tensor(by))

        def forward(self, x):
            return {"out": x + self.by, "count": torch.tensor(3)}

    report = tenfold.verify(Shift(0.5), Shift(0.0), [torch.ones(4), torch.ones(2, 2)])
    assert report.drift.relative == pytest.approx(0.5)
    assert report.drift.worst == pytest.approx(0.5)
    assert report.drift.batches == 2
    scored = tenfold.verify(Shift(0.5), Shift(0.0), [torch.ones(4)], evaluate=lambda net: -float(net.by))
    assert (scored.metric.dense, scored.metric.small) == (0.0, -0.5)


def test_a_report_as_text_is_a_table():
    dense, small = nn.Linear(30, 40).eval(), nn.Linear(30, 40, bias=False).eval()
    small.weight = dense.weight
    report = tenfold.verify(small, dense, [images(2, 30)], evaluate=lambda net: torch.tensor([1.0, net.bias is None]))
    head, *lines = str(report).splitlines()
    assert head.split() == ["dense", "small", "small", "/", "dense"]
    assert len({len(line) for line in (head, lines[0], lines[2])}) == 1  # numbers stand below each other
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in lines)
    assert rows.pop("ms")
    assert {name: row.split() for name, row in rows.items()} == {
        "parameters": ["1,240", "1,200", "0.968"],
        "multiply-adds": ["2,400", "2,400", "1.000"],
        "bytes": ["4,960", "4,800", "0.968"],
        "peak activation bytes": ["320", "320", "1.000"],
        "metric": ["0.5000", "1.0000", "+0.5000"],
        "95 % interval of its change": ["-0.4800", "to", "+1.4800"],
        "relative drift of the outputs": [f"{report.drift.relative:.4g}"],
    }
