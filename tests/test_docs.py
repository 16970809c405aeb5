"""What the documentation shows runs as it stands there."""

import re
from pathlib import Path

import accelerate
import pytest
import torch
from nets import images, randomised
from test_soft_pruning import Blocks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tenfold
from tenfold import Budget
from tenfold.methods import SVD, FilterPruning
from tenfold.train import ADMM, HoyerPull, SoftFilterPruning, SVDTraining

PAGE = (Path(__file__).parent.parent / "docs" / "trained-small.md").read_text()
SECTIONS = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
BLOCKS = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for title, text in SECTIONS}
LOOPS = ("In a loop of your own", "With accelerate", "With Lightning")


def setting(make):
    """A trained network, data, and hooks, by the names of the page."""
    net, x = randomised(Blocks(16)).train(), images(64, 3, 8, 8)
    with torch.no_grad():
        target = net.eval()(x).argmax(1)
    hooks = make(net, x)
    if isinstance(hooks, SVDTraining):
        net = hooks.factorised(net)
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.01, momentum=0.9)
    loader = DataLoader(TensorDataset(x, target), batch_size=16)
    criterion, epochs = nn.functional.cross_entropy, 3
    return {**locals(), "x": x[:2]}


def planned(net, x, method):
    return tenfold.plan(net, Budget(params=0.5), example=x[:1], methods=[method])


MAKE = {
    "soft": lambda net, x: SoftFilterPruning(net, planned(net, x, FilterPruning())),
    "admm": lambda net, x: ADMM(net, planned(net, x, SVD()), strength=1.0),
    "pull": lambda net, x: HoyerPull(strength=0.01),
    "svd": lambda net, x: SVDTraining("channel", sparsity=0.01),
}


def run_loop(loop, names):
    (code,) = BLOCKS[loop]
    if loop == "With accelerate":
        names["accelerator"] = accelerate.Accelerator(cpu=True)
    if loop == "With Lightning":
        names["lightning"] = pytest.importorskip("lightning")
    exec(code, names)
    if loop == "With Lightning":
        _fit(names)


def _fit(names):
    lightning = names["lightning"]

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = names["net"]

        def training_step(self, batch, _):
            return names["criterion"](self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return names["optimizer"]

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=names["epochs"], accelerator="cpu", callbacks=[names["Smaller"]()], **quiet)
    trainer.fit(Module(), names["loader"])


@pytest.mark.parametrize("way", MAKE)
@pytest.mark.parametrize("loop", LOOPS)
def test_every_loop_drives_every_way(loop, way):
    names, plain = setting(MAKE[way]), setting(MAKE[way])
    run_loop(loop, names)
    run_loop(LOOPS[0], plain)
    for found, expected in zip(names["net"].parameters(), plain["net"].parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    if way == "soft":
        for step in names["hooks"].plan.steps:
            zero = (names["net"].get_submodule(step.layers[0]).weight.flatten(1) == 0).all(1)
            assert int(zero.sum()) == step.links[0].filters - step.rank[0]


def test_what_comes_before_and_after():
    names = setting(MAKE["soft"])
    for code in [*BLOCKS["Filters that go"], *BLOCKS["In a loop of your own"], *BLOCKS["And then"]]:
        exec(code, names)
    net, small, x = (names[name] for name in ("net", "small", "x"))
    assert tenfold.measure(small, x).params <= 0.2 * tenfold.measure(net, x).params


def test_every_block_of_the_page_is_run():
    assert BLOCKS.keys() == {"Filters that go", *LOOPS, "And then"}
    assert all(len(blocks) == 1 for blocks in BLOCKS.values())
