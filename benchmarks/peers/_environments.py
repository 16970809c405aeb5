"""An environment of its own for each peer, made once from the package registry."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

TORCH = ("torch==2.13.0", "torchvision==0.28.0")  # a constraint: the second is installed where a peer asks for it
# What this library's source and the benchmarks' data, networks and scoring need; no versions, peers come first.
LIGHT = ("accelerate", "highspy", "numpy", "pillow", "pyarrow", "pydantic", "rich", "safetensors", "typer")
OWN = ("torch-pruning",)  # what finds filters for this library
PEERS = (
    "tenfold",
    "tenfold-fast",
    "tenfold-fastest",
    "aimet-torch",
    "fasterai",
    "model-compression-toolkit",
    "musco-pytorch",
    "neural-compressor",
    "nncf",
    "nni",
    "nvidia-modelopt",
    "svd-training",
    "tednet",
    "tensorly-torch",
    "torch-pruning",
)
DENSE = "dense"  # the control of all that is fine-tuned
_FAILED = "failed.txt"


class Unavailable(Exception):  # noqa: N818  a fact about a peer, no error of ours
    """The peer cannot be installed."""


def python_of(peer: str, folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there.

    Raises:
        Unavailable: with pip's message, also where it failed in an earlier run; delete the environment to try again.
    """
    adapter = import_module(f"benchmarks.peers.{peer.replace('-', '_')}")
    home = folder / (peer if adapter.INSTALL else "tenfold")
    python, failed = home / "bin" / "python", home / _FAILED
    if failed.exists():
        raise Unavailable(failed.read_text())
    if not (home / "made").exists():
        message = _install(home, python, adapter.INSTALL or OWN)
        if message:
            failed.write_text(message)
            raise Unavailable(message)
        (home / "made").touch()
    return python


def _install(home: Path, python: Path, packages: tuple[str, ...]) -> str | None:
    """Make the environment; what pip says if it fails."""
    print(f"installing {' '.join(packages)} into {home}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(TORCH) + "\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    for asked in ((TORCH[0], *LIGHT), (TORCH[0], *packages)):
        done = subprocess.run([*pip, *asked], capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return (errors or done.stderr.splitlines() or ["pip failed"])[0]
    return None
