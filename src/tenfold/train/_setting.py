"""A training run as one file."""

from pydantic import Field

from tenfold._given import USUAL, FromFile, Trained
from tenfold.train._augment import Augment
from tenfold.train._progressive import Round


class Setting(Trained, FromFile):
    """What `tenfold train` reads; its data are labelled: of `module:callable`, a map-style data set."""

    calibration: int = Field(1024, gt=0)  # examples of the data
    methods: str = USUAL
    augment: Augment | None = None
    evaluate: str | None = None
    rounds: tuple[Round, ...] = Field(min_length=1)
    device: str = "cpu"
