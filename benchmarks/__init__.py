"""What the library does to real networks, measured. Each public file is one benchmark: `python -m benchmarks.oneshot`.

The environment variable `TENFOLD_DATA` names a folder with `models/` (trained weights, safetensors) and `data/`
(images, parquet). Results are rows of JSON under `benchmarks/results/`; pages under `docs/` are made from them.
"""
