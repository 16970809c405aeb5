"""What runs on the target machine: times the pieces of a kit beside the dense layers, and writes a table.

It is the `__main__.py` of the kit, a zip file that Python runs, and needs nothing of this package: only the standard
library, and torch or onnxruntime. `latency.py`, beside it, is this package's own measurement.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any


def main() -> None:
    """`python kit.pyz times.json --threads 1`."""
    parser = argparse.ArgumentParser(prog="python kit.pyz", description="Time the layers of a network here.")
    parser.add_argument("table", help="where to write the times, a JSON file")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    asked = parser.parse_args()
    from latency import paced_ms  # type: ignore[import-not-found]

    kit = zipfile.ZipFile(sys.argv[0])
    contents = json.loads(kit.read("pieces.json"))
    load, versions = LOADERS[contents["engine"]](kit, asked.threads)
    times: dict[str, float] = {}
    pacemaker, pace = load(contents["groups"][0][0]), dict[str, float]()
    for number, group in enumerate(contents["groups"], 1):
        missing = [piece for piece in group if piece["key"] not in times or piece is group[0]]
        found = paced_ms([load(piece) for piece in missing], pacemaker, pace, rounds=9, least_ms=2.0)
        usual = times.get(group[0]["key"], found[0])
        times.update({piece["key"]: ms * usual / found[0] for piece, ms in zip(missing, found, strict=True)})
        print(f"{number} of {len(contents['groups'])} layers", end="\r", flush=True)
    (whole_ms,) = paced_ms([load(contents["whole"])], pacemaker, pace, rounds=11, sure=0.01)
    conditions = {"engine": contents["engine"], "device": device(), "threads": asked.threads, "versions": versions}
    table = {"tenfold": contents["tenfold"], "conditions": conditions, "times": times, "whole_ms": whole_ms}
    beside = Path(f"{asked.table}.{os.getpid()}")
    beside.write_text(json.dumps(table, indent=1), encoding="utf-8")
    beside.replace(asked.table)
    print(f"{len(times)} times and that of the network, {whole_ms:.2f} ms, are in {asked.table}.")


def device() -> str:
    """The processor, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def in_onnxruntime(kit: Any, threads: int) -> Any:
    """What loads a piece, an ONNX file, and the versions of what runs it."""
    import numpy as np
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1

    def load(piece: Any) -> Any:
        session = onnxruntime.InferenceSession(kit.read(piece["file"]), settings, providers=["CPUExecutionProvider"])
        drawn = np.random.default_rng(0)
        given = {
            put.name: drawn.uniform(-1, 1, shape).astype(dtype) if dtype.startswith("float") else np.zeros(shape, dtype)
            for put, (shape, dtype) in zip(session.get_inputs(), piece["inputs"], strict=True)
        }
        session.run(None, given)
        return lambda: session.run(None, given)

    return load, [f"onnxruntime {onnxruntime.__version__}"]


def in_torch(kit: Any, threads: int) -> Any:
    """What builds a piece from its description, or loads the network, and the versions of what runs it."""
    import torch

    torch.set_num_threads(threads)

    def built(layer: Any) -> Any:
        if layer["kind"] == "chain":
            return torch.nn.Sequential(*map(built, layer["parts"]))
        return getattr(torch.nn, layer["kind"])(**layer["settings"])

    def load(piece: Any) -> Any:
        if "file" in piece:
            with tempfile.TemporaryDirectory() as folder:
                model = torch.export.load(kit.extract(piece["file"], folder)).module()
        else:
            model = built(piece["layer"]).eval().to(getattr(torch, piece["inputs"][0][1]))
        given = [
            torch.rand(shape, dtype=getattr(torch, dtype)) if dtype.startswith("float") else torch.zeros(shape).long()
            for shape, dtype in piece["inputs"]
        ]
        if piece.get("channels_last"):
            last = torch.channels_last
            model.to(memory_format=last)  # type: ignore[call-overload]
            given = [tensor.to(memory_format=last) if tensor.dim() == 4 else tensor for tensor in given]

        def run() -> Any:
            with torch.no_grad():
                return model(*given)

        run()
        return run

    return load, [f"torch {torch.__version__}"]


LOADERS = {"onnxruntime": in_onnxruntime, "eager": in_torch}

if __name__ == "__main__":
    main()
