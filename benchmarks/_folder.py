"""Where trained weights and images are found."""

import os
from pathlib import Path

VARIABLE = "TENFOLD_DATA"


def data_folder() -> Path:
    """The folder that `TENFOLD_DATA` names; without it the program ends, saying so."""
    named = os.environ.get(VARIABLE)
    if not named:
        raise SystemExit(f"{VARIABLE} is not set; set it to the folder that holds models/ and data/.")
    return Path(named)
