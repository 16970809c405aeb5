"""Planning is quick and light: measured, so only meaningful on a machine that has nothing else to do."""

import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import tenfold
from tenfold import Budget
from tenfold.methods import SVD, Tucker

METHODS = [SVD(), SVD("input"), Tucker()]


def resnet50():
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return models.resnet50(weights=None).eval()


@pytest.mark.heavy
def test_planning_takes_at_most_one_and_a_half_svds_of_every_layer():
    model, x = resnet50(), torch.randn(1, 3, 224, 224)
    unfoldings = [m.weight.detach().flatten(1) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

    def svds():
        for unfolding in unfoldings:
            torch.linalg.svd(unfolding, full_matrices=False)

    def planned_and_applied():
        tenfold.apply(model, tenfold.plan(model, Budget(params=0.5), example=x, methods=METHODS))

    def seconds(run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    pairs = [(seconds(planned_and_applied), seconds(svds)) for _ in range(3)]
    assert sorted(ours / theirs for ours, theirs in pairs)[1] <= 1.5, pairs


PEAK = """
import resource, sys
sys.path.insert(0, {tests!r})
import conftest, torch, torchvision, tenfold, highspy
from test_speed import METHODS
model, x = torchvision.models.resnet50(weights=None).eval(), torch.randn(1, 3, 224, 224)
size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
with torch.no_grad():
    model(x)  # what running the network takes is not planning's
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
tenfold.apply(model, tenfold.plan(model, tenfold.Budget(params=0.5), example=x, methods=METHODS))
print((peak() - before + size) / size)
"""


@pytest.mark.heavy
def test_peak_memory_is_under_four_times_the_model(request):
    script = PEAK.format(tests=str(request.path.parent))
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 4


@pytest.mark.heavy
def test_import_is_light():
    """Adds less than 0.3 s to `import torch`; the median of five."""
    code = "import time, torch; start = time.perf_counter(); import tenfold; print(time.perf_counter() - start)"
    times = sorted(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5))
    assert times[2] < 0.3
