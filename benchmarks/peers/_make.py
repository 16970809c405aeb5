"""One network of a peer, made and judged: what runs inside the peer's environment."""

import argparse
import copy
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import benchmarks._zoo  # noqa: F401  declares the operators that peers that import torchvision look for
import tenfold
from benchmarks import _rows
from benchmarks._images import SPLITS, Images, drawn_images, first_images, training_images
from benchmarks._nets import trained
from benchmarks._score import correct, in_bulk, packed, paired_interval, percent, unpacked
from benchmarks._train import announced, fit, kept
from benchmarks.peers._adapter import best
from benchmarks.peers._row import USUAL, Found, Job
from benchmarks.seeds import _joint_cases as joint
from tenfold._latency import interleaved_ms
from tenfold.train import Recipe

IMAGES, BATCH, QUICK_IMAGES = 1_024, 128, 500  # of training data; of any split, for a look
TIMING = {"rounds": 60, "sure": 0.003}  # these networks take milliseconds
RATES = (0.002, 0.01)  # those of the short and the long recipe in benchmarks.finetuning


def main() -> None:
    """Make the network that the command line names, and write what it comes to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--net")
    parser.add_argument("--data")
    parser.add_argument("--peer")
    parser.add_argument("--params", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    announced()
    data = asked.data or USUAL[asked.net]
    job = Job(asked.net, data, asked.peer, asked.params, asked.seed, asked.epochs, asked.quick)
    _rows.replace_text(asked.out, found(job, asked.runs).model_dump_json())


def found(job: Job, runs: Path) -> Found:
    """Compress, fine-tune if asked, judge on the held-out split."""
    dense = dense_net(job.net, job.data, runs)
    batches = [*drawn_images(job.data, "train", IMAGES, job.seed).batches(BATCH)]
    adapter = import_module(f"benchmarks.peers.{job.peer.replace('-', '_')}")
    made = best(adapter.settings(copy.deepcopy(dense), batches), dense, job.params, batches)
    model, setting = made.model.requires_grad_(True), made.setting
    if job.epochs:
        model, rate = tuned(model, dense, job, runs)
        setting += f"; learning rate {rate:g}"
    images = first_images(job.data, SPLITS[job.data], QUICK_IMAGES if job.quick else None)
    package = adapter.INSTALL[0].partition("==")[0] if adapter.INSTALL else "tenfold"
    number = version(package) if adapter.INSTALL else tenfold.__version__
    # Of the dense network, which all rows share.
    known = runs / f"peers-{job.net}-{job.data}-right{'-quick' * job.quick}.txt"
    if not known.exists():
        _rows.replace_text(known, packed(correct(in_bulk(dense), images)))
    right_dense = unpacked(known.read_text(), len(images))
    return judged(model.eval(), dense, images, right_dense).model_copy(
        update={
            **{"package": f"{package} {number}", "setting": setting, "norms": made.norms},
            "seconds": round(made.seconds, 2),
        }
    )


def tuned(small: nn.Module, dense: nn.Module, job: Job, runs: Path) -> tuple[nn.Module, float]:
    """The small network taught by the dense one, and the learning rate: the better of two on training images held back.

    Nothing in the recipe knows of this library's own factors. One rate for all would not be the same for all: where
    factors differ in norm, as with TensorLy's CP, the larger one loses what there was.
    """
    images = training_images(job.data, QUICK_IMAGES if job.quick else None)
    found: list[tuple[float, float, nn.Module]] = []
    for rate in RATES:
        recipe = Recipe(epochs=job.epochs, lr=rate, weight_decay=0, balance=False, seed=job.seed)
        done = fit(small, dense, images, recipe, runs / f"{job.stem}-{rate:g}")
        found += [(done.history[-1].metric or 0.0, rate, done.model)]
    _, rate, model = max(found, key=lambda one: one[0])
    return model, rate


def judged(small: nn.Module, dense: nn.Module, images: Images, right_dense: Tensor) -> Found:
    """Accuracy beside the dense network's, image by image, and costs of one image."""
    ours = any(isinstance(module, tenfold.Factored) for module in small.modules())
    right = correct(in_bulk(small) if ours else small, images)
    example = images[:1][0]
    costs = [tenfold.measure(model, example) for model in (small, dense)]
    return Found(
        **{"package": "", "setting": "", "norms": False, "seconds": 0.0},
        dense_accuracy=round(percent(right_dense), 4),
        accuracy=round(percent(right), 4),
        interval=paired_interval(right, right_dense),
        right=packed(right),
        images=len(images),
        params_ratio=round(costs[0].params / costs[1].params, 7),
        macs_ratio=round(costs[0].macs / costs[1].macs, 5),
        latency_ratio=round(latency_ratio(small, dense, example), 4),
    )


@torch.inference_mode()
def latency_ratio(small: nn.Module, dense: nn.Module, example: Tensor) -> float:
    """Time of one network over that of the other, each in the memory format in which it is faster."""
    formats = (torch.contiguous_format, torch.channels_last)
    # In eval mode beforehand: the call that sets it takes a tenth of the time of some networks.
    stored = [
        (copy.deepcopy(model).eval().to(memory_format=one), example.contiguous(memory_format=one))  # type: ignore[call-overload]
        for model in (small, dense)
        for one in formats
    ]
    times = interleaved_ms([partial(model, images) for model, images in stored], **TIMING)
    return min(times[:2]) / min(times[2:])


def dense_net(net: str, data: str, runs: Path) -> nn.Module:
    """The trained network: from the data folder, or what `benchmarks.seeds.joint` has trained and kept."""
    if data == "cifar10-jpeg":
        return trained(net, data)
    job = joint.Job(net, data, joint.DENSE)

    def untrained(_: Path) -> None:
        raise SystemExit(f"no dense {net} for {data} under {runs}; first: {job.command}")

    return kept(runs / job.stem, lambda: joint.dense_shape(net, data), untrained).model  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
