"""The demonstration: a small residual network learns handwritten digits, and is made ten times smaller, no slower."""

import logging
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from tenfold import _tables, report
from tenfold._budget import Budget
from tenfold._calibrate import calibrate
from tenfold._candidates import options
from tenfold._compress import carry_out
from tenfold._progress import track
from tenfold._sources import imported
from tenfold._store import refuse_taken, save

log = logging.getLogger("tenfold")

WIDTHS = (32, 64, 128)
EPOCHS = 12


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images of `(batch, inputs, height, width)`."""
        inside = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inside + self.shortcut(x))


def digits_net() -> nn.Module:
    """A residual network for 8x8 grey images of ten digits."""
    inputs = (WIDTHS[0], *WIDTHS)
    blocks = [Block(a, b) for a, b in zip(inputs, WIDTHS, strict=False)]
    stem = [nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))


def run_demo(folder: Path, out: Console, command: str | None = None) -> None:
    """Train, compress tenfold, print before and after, and leave the folder, with a page about it.

    Raises:
        TenfoldError: if a library that it needs is not installed, or the folder is taken.
    """
    refuse_taken(folder)
    report.check_installed()
    train, held_out = _digits()
    out.print(f"Training a residual network on {len(train):,} images of handwritten digits ...")
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _trained(train)
    out.print(
        f"Trained in {time.perf_counter() - start:.0f} s. Compressing to a tenth of the parameters, no slower ...\n"
    )

    images, labels = held_out.tensors

    def accuracy(net: nn.Module) -> Tensor:
        return net(images).argmax(1) == labels

    start = time.perf_counter()
    example, calibration = images[:1], list(DataLoader(train, batch_size=128))
    found = options(model, example=example, statistics=calibrate(model, calibration))
    task: dict[str, Any] = {"example": example, "calibration": calibration, "evaluate": accuracy, "command": command}
    result = carry_out(Budget(params=0.1, latency=1.0), found, **task)
    save(folder, result.model, result.plan.model_copy(update={"reference": "tenfold._demo:digits_net"}), result.report)
    report.write(folder)

    out.print(_tables.plan_table(_tables.planned(found, result.plan)))
    out.print()
    out.print(_tables.report_table(result.report, metric=f"accuracy on {len(labels)} held-out images"))
    out.print(f"\nCompressed in {time.perf_counter() - start:.1f} s, without labels.")
    out.print(f"The smaller network is in {folder}: tenfold.load({str(folder)!r}) rebuilds it.", soft_wrap=True)


def _digits() -> tuple[TensorDataset, TensorDataset]:
    data = imported("sklearn.datasets", "the demo's images (pip install tenfold[demo])").load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, train = order[:400], order[400:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[held_out], labels[held_out])


def _trained(train: TensorDataset) -> nn.Module:
    model = digits_net().train()
    loader = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, EPOCHS * len(loader))
    for _ in track(range(EPOCHS), "training"):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(_shifted(images)), labels).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _shifted(images: Tensor) -> Tensor:
    dx, dy = torch.randint(-1, 2, (2,)).tolist()
    return F.pad(images, (1, 1, 1, 1))[..., 1 + dy : 9 + dy, 1 + dx : 9 + dx]
