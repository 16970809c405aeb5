"""Models and data by name."""

import json
import os
import pty
import subprocess
import sys

import pytest
import torch
from nets import images

import tenfold
from tenfold import Budget, TenfoldError
from tenfold._batches import read_batches
from tenfold._given import network
from tenfold._progress import listening, track
from tenfold._sources import build_model
from tenfold.methods import SVD


@pytest.mark.parametrize("reference", ["timm:resnet18", "torchvision:resnet18"])
def test_a_network_by_name_is_compressed(reference):
    pytest.importorskip(reference.split(":")[0], reason="the package is not installed")
    model = build_model(reference)
    result = tenfold.compress(model, Budget(params=0.5), example=images(1, 3, 64, 64), methods=[SVD()])
    assert result.report.small.params <= 0.5 * result.report.dense.params


BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
}


def test_a_transformers_configuration_is_compressed(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    model = build_model(f"transformers:{tmp_path}")
    assert type(model).__name__ == "BertForSequenceClassification"
    ids = {"input_ids": torch.ones(1, 9, dtype=torch.int64)}
    result = tenfold.compress(model, Budget(params=0.8), example=ids)
    assert result.report.small.params <= 0.8 * result.report.dense.params


def test_a_transformers_network_is_built_in_a_fresh_process(tmp_path):
    """Nothing before has imported torchvision, which may be of another build than torch."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    code = "import sys; from tenfold._sources import build_model; print(type(build_model(sys.argv[1])).__name__)"
    run = subprocess.run(
        [sys.executable, "-c", code, f"transformers:{tmp_path}"], capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "BertForSequenceClassification", run.stderr


def test_weights_of_an_older_transformers_hold_buffers_that_are_no_longer_stored(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    reference, weights = f"transformers:{tmp_path}", tmp_path / "w.pt"
    state = build_model(reference).state_dict()
    torch.save({**state, "bert.embeddings.position_ids": torch.arange(512)[None]}, weights)
    model = network(reference, weights)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    torch.save({**state, "bert.embeddings.positions": torch.arange(512)[None]}, weights)
    with pytest.raises(TenfoldError, match=r"holds unknown bert\.embeddings\.positions: it does not belong"):
        network(reference, weights)


def test_building_draws_no_random_numbers():
    before = torch.get_rng_state()
    build_model("tenfold._demo:digits_net")
    assert torch.equal(before, torch.get_rng_state())


def test_images_are_normalised_as_told(shared_data):
    file = shared_data / "data" / "cifar10-jpeg" / "test.parquet"
    plain = read_batches(f"parquet:{file}", 100, (3, 32, 32), (0, 0, 0), (1, 1, 1))
    assert [len(labels) for _, labels in plain] == [64, 36]
    assert 0 <= float(plain[0][0].min()) < float(plain[0][0].max()) <= 1
    scaled = read_batches(f"parquet:{file}", 100, (3, 32, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert torch.allclose(scaled[0][0], (plain[0][0] - 0.5) / 0.25, atol=1e-6)
    small = read_batches(f"parquet:{file}", 3, (1, 8, 10))
    assert small[0][0].shape == (3, 1, 8, 10)
    with pytest.raises(TenfoldError, match="--input"):
        read_batches(f"parquet:{file}", 3, None)


def test_progress_reaches_the_listener_and_nothing_else(capsys):
    heard = []
    with listening(lambda *report: heard.append(report)):
        assert list(track([1, 2], "work")) == [1, 2]
    assert heard == [("work", 0, 2), ("work", 1, 2), ("work", 2, 2)]
    assert list(track(iter([1]), "work")) == [1]
    assert capsys.readouterr() == ("", "")


def test_the_library_prints_nothing(capfd):
    model = build_model("tenfold._demo:digits_net")
    tenfold.compress(model, Budget(params=0.4, macs=0.5), example=images(1, 1, 8, 8), calibration=[images(8, 1, 8, 8)])
    assert capfd.readouterr() == ("", "")


BARS = """
import time
from rich.console import Console
from tenfold._bars import progress_bars
from tenfold._progress import track
with progress_bars(Console(stderr=True), patience_s=0.2):
    for _ in track(range(8), "slow work"):
        time.sleep(0.1)
    for _ in track(range(3), "quick work"):
        pass
"""


def test_bars_show_on_a_terminal_for_what_is_slow():
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", BARS], stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    assert b"slow work" in shown
    assert b"quick work" not in shown
    quiet = subprocess.run([sys.executable, "-c", BARS], capture_output=True, check=True)
    assert quiet.stdout + quiet.stderr == b""


@pytest.mark.parametrize("reference", ["torchvision:resnet18", "timm:resnet18"])
def test_torchvision_for_another_torch_gives_networks_all_the_same(reference, tmp_path):
    script = f"import torch, tenfold._sources as s; print(s.build_model({reference!r})(torch.ones(1, 3, 64, 64)).shape)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([1, 1000])", done.stderr
