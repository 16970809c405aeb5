"""One peer at one budget: what it made, or why it made nothing."""

import shlex
from dataclasses import dataclass

from benchmarks._rows import Record

USUAL = {"resnet20": "cifar10-jpeg", "resnet56": "cifar10-jpeg", "resnet18": "tiny-imagenet-50"}  # without --data


class Found(Record):
    """What the network of a peer comes to, judged on the held-out split."""

    package: str  # the peer and its version
    setting: str  # the best of those tried, by training images
    norms: bool  # whether batch norms were re-estimated, which is done where training images say that it helps
    dense_accuracy: float  # percent
    accuracy: float  # percent
    interval: tuple[float, float]  # 95 % interval of accuracy less dense_accuracy, in points
    right: str  # which images the network gets right, packed, to compare two rows image by image
    images: int  # of the held-out split
    params_ratio: float  # this and the next two: small / dense
    macs_ratio: float
    latency_ratio: float  # from medians of interleaved runs on one image
    seconds: float  # that compression in this setting took


class Row(Record):
    """One peer at one budget. The command makes exactly this row, so it is also the row's identity."""

    net: str
    data: str
    split: str
    peer: str
    asked: float  # share of the dense network's parameters
    epochs: int  # of fine-tuning; 0 for none
    quick: bool  # on a part of the split, for a look; never published
    seed: int
    found: Found | None
    message: str | None  # the first line of why there is nothing
    device: str
    version: str  # of tenfold, whose data, networks, scoring and fine-tuning serve all peers
    command: str

    @property
    def network(self) -> str:
        """What tells networks apart: the name, and the data where another was meant for the network."""
        return " on ".join([self.net, *_unusual(self.net, self.data)])

    def line(self) -> str:
        """The row in one line, for the terminal."""
        start = f"{self.network} {self.peer} {100 * self.asked:g} %{' tuned' * bool(self.epochs)}: "
        if self.found is None:
            return start + str(self.message)
        return start + (
            f"{self.found.accuracy:.2f} % (dense {self.found.dense_accuracy:.2f}), "
            f"parameters x{self.found.params_ratio:.3f}, multiply-adds x{self.found.macs_ratio:.3f}, "
            f"latency x{self.found.latency_ratio:.2f}, {self.found.seconds:.1f} s, {self.found.setting}"
        )


@dataclass(frozen=True)
class Job:
    """One row to make."""

    net: str
    data: str
    peer: str
    params: float
    seed: int
    epochs: int  # of fine-tuning; 0 for none
    quick: bool

    @property
    def options(self) -> list[str]:
        """What makes this row and no other."""
        data = "".join(f" --data {data}" for data in _unusual(self.net, self.data))
        named = f"--net {self.net}{data} --peer {self.peer} --params {self.params:g} --seed {self.seed}"
        tuned = f" --tuned --epochs {self.epochs}" if self.epochs else ""
        return shlex.split(named + tuned + " --quick" * self.quick)

    @property
    def command(self) -> str:
        """The row's identity."""
        return shlex.join(["python", "-m", "benchmarks.peers", *self.options])

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        data = _unusual(self.net, self.data)
        parts = (self.net, *data, self.peer, f"{self.params:g}", self.seed, self.epochs)
        return "-".join(["peers", *map(str, parts)]) + "-quick" * self.quick


def _unusual(net: str, data: str) -> list[str]:
    """The data, where they are not those that are usual for the network."""
    return [] if data == USUAL[net] else [data]
