"""How the library behaves towards whoever uses it: light to import, quiet, the same every time, and leaves no trace."""

import logging
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor  # torch's own parts change filters of warnings and the environment when first imported
from nets import images, randomised, small_cnn
from torch import nn

import tenfold
from tenfold import Budget, TenfoldError, train
from tenfold._batches import read_batches
from tenfold._demo import run_demo
from tenfold._sources import build_model
from tenfold.methods import CP, SVD, FilterPruning

OPTIONAL = """
accelerate datasets huggingface_hub jinja2 matplotlib onnx onnxruntime onnxscript pandas PIL plotly pyarrow ray rich
scipy sklearn timm torch_pruning torchvision transformers typer
""".split()  # noqa: SIM905  a list of them takes a line each


def test_importing_the_library_imports_nothing_optional():
    script = f"import sys, tenfold, tenfold.methods; print([m for m in {OPTIONAL} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def spread():
    with tenfold.workers("local"):
        pass


NEEDS = {
    "accelerate": (lambda net, x, folder: train.finetune(net, net, [(x[0], 0)], train.Recipe(epochs=1)), "train"),
    "datasets": (lambda net, x, folder: read_batches("parquet:*.parquet", 8, shape=x.shape[1:]), "data"),
    "onnx": (lambda net, x, folder: tenfold.export(net, x, folder / "net.onnx"), "export"),
    "onnxruntime": (
        lambda net, x, folder: tenfold.compress(net, Budget(latency=0.9), example=x, engine="onnxruntime"),
        "export",
    ),
    "torch_pruning": (
        lambda net, x, folder: tenfold.compress(net, Budget(params=0.5), example=x, methods=[FilterPruning()]),
        "prune",
    ),
    "ray": (lambda net, x, folder: spread(), "ray"),
    "timm": (lambda net, x, folder: build_model("timm:resnet18"), "models"),
    "torchvision.models": (lambda net, x, folder: build_model("torchvision:resnet18"), "models"),
    "transformers": (lambda net, x, folder: build_model("transformers:folder"), "models"),
    "sklearn.datasets": (lambda net, x, folder: run_demo(folder / "digits", None), "demo"),
}


@pytest.mark.parametrize("package", NEEDS)
def test_a_missing_package_is_named_with_the_line_to_install_it(package, tmp_path, monkeypatch):
    use, extra = NEEDS[package]
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)  # an import of it fails
    with pytest.raises(TenfoldError, match=rf"pip install tenfold\[{extra}\]"):
        use(randomised(small_cnn()), images(2, 3, 16, 16), tmp_path)


def surroundings() -> dict[str, object]:
    """What is global, and belongs to whoever uses the library."""
    root = logging.getLogger()
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": str(np.random.get_state()),
        "random": random.getstate(),
        "warnings": list(warnings.filters),
        "root logger": (root.level, list(root.handlers)),
        "own logger": (logging.getLogger("tenfold").level, list(logging.getLogger("tenfold").handlers)),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "hooks": (sys.excepthook, sys.displayhook),
        "path": list(sys.path),
    }


def test_a_whole_run_leaves_the_surroundings_alone(tmp_path, capfd):
    net, x = randomised(small_cnn()), images(16, 3, 16, 16)
    before, values = surroundings(), {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = tenfold.compress(net, Budget(params=0.6), example=x[:2], calibration=[x], methods=[SVD(), CP()])
    result.save(tmp_path / "small")
    tenfold.load(tmp_path / "small", small_cnn_on_meta())
    tenfold.export(result.model, x[:2], tmp_path / "small.pt2")
    after = surroundings()
    assert {name for name in before if before[name] != after[name]} == set()
    assert all(torch.equal(tensor, values[name]) for name, tensor in net.state_dict().items())
    assert capfd.readouterr() == ("", "")


def small_cnn_on_meta() -> nn.Module:
    """The network without values, drawing no random numbers."""
    with torch.device("meta"):
        return small_cnn()


SAME = """
import sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from nets import images, randomised, small_cnn
import tenfold
from tenfold._resume import digest
x = images(16, 3, 16, 16)
result = tenfold.compress(randomised(small_cnn()), tenfold.Budget(params=0.6), example=x[:2], calibration=[x])
print(digest(result.plan.dumps(), result.model.state_dict()))
"""


def test_two_processes_come_to_the_same():
    script = SAME.format(tests=str(Path(__file__).parent))
    found = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1] != ""
