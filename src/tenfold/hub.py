"""The Hugging Face hub: a compressed network as a repository. Needs `pip install tenfold[hub]`."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download
from torch import nn

from tenfold._plan import Plan
from tenfold._store import load, load_plan, load_report, save
from tenfold._verify import Report

__all__ = ["Compressed"]

_CARD = """---
{{ card_data }}
---

A compressed network: `plan.json` says which layer became what, `report.json` what that did.

```python
from tenfold.hub import Compressed

model = Compressed.from_pretrained("this repository", dense=the_dense_network).model
```
"""


class Compressed(ModelHubMixin, library_name="tenfold", model_card_template=_CARD):  # type: ignore[misc, call-arg]
    """A compressed network with its plan and report, as `save_pretrained`, `push_to_hub` and `from_pretrained` want it.

    ```python
    Compressed(result.model, result.plan, result.report).push_to_hub("me/small-net")
    model = Compressed.from_pretrained("me/small-net", dense=dense_model).model
    ```

    `dense` is that of `tenfold.load`: without it the network is built from the reference in the plan, which runs the
    code that it names, or taken from the repository's `model.pt2`.
    """

    def __init__(self, model: nn.Module, plan: Plan, report: Report | None) -> None:
        self.model, self.plan, self.report = model, plan, report

    def _save_pretrained(self, save_directory: Path) -> None:
        with tempfile.TemporaryDirectory(dir=save_directory) as folder:
            save(Path(folder) / "saved", self.model, self.plan, self.report)
            for file in (Path(folder) / "saved").iterdir():
                shutil.move(file, save_directory / file.name)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, dense: nn.Module | None = None, **download: Any) -> "Compressed":
        folder = Path(model_id)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_id, **download))
        report = load_report(folder) if (folder / "report.json").is_file() else None
        return cls(load(folder, dense), load_plan(folder / "plan.json"), report)
