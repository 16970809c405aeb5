"""A training run as one file."""

import tomllib
from pathlib import Path

from pydantic import Field

from tenfold._batches import IMAGENET
from tenfold._errors import TenfoldError
from tenfold._plan import Record
from tenfold.train._augment import Augment
from tenfold.train._progressive import Round


class Setting(Record):
    """What `tenfold train` reads; names of models, data and functions as on the command line."""

    model: str
    weights: str
    input: str  # a shape, such as "1,3,32,32"
    data: str  # labelled: parquet:FILES, imagefolder:DIR, or module:callable that returns a map-style data set
    calibration: int = Field(1024, gt=0)  # examples of the data
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    methods: str = "svd,spatial,tucker,cp,tt"
    freeze: tuple[str, ...] = ()
    augment: Augment | None = None
    evaluate: str | None = None
    rounds: tuple[Round, ...] = Field(min_length=1)
    device: str = "cpu"

    @classmethod
    def read(cls, path: Path) -> "Setting":
        """Read a TOML file, or the JSON that a run left.

        Raises:
            TenfoldError: if it is missing, or says something that is not known.
        """
        try:
            text = path.read_text(encoding="utf-8")
            return cls.loads(text, name=str(path)) if path.suffix == ".json" else cls(**tomllib.loads(text))
        except FileNotFoundError:
            raise TenfoldError(f"there is no file {path}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise TenfoldError(f"{path} is no TOML: {error}.") from None
