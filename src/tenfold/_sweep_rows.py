"""The rows of a sweep: one for each network that was made, refused, or comes from another library."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, get_args, get_type_hints

from tenfold._errors import TenfoldError, first_line
from tenfold._plan import Record
from tenfold._resume import write_bytes
from tenfold._sources import imported

OURS = "tenfold"
NEEDED = ("library", "net", "method", "params_share", "metric")  # of rows from elsewhere
_NEEDS = "a sweep's rows (pip install tenfold[sweep])"


class Row(Record):
    """A line of `rows.parquet`; what is not known is left out. Shares are of the dense network's."""

    library: str = OURS
    version: str | None = None  # of the library
    torch: str | None = None
    net: str
    method: str
    budget: str | None = None
    seed: int | None = None
    params: int | None = None
    macs: int | None = None  # multiply-adds of one run of the input
    bytes: int | None = None
    params_share: float | None = None
    macs_share: float | None = None
    bytes_share: float | None = None
    dense_metric: float | None = None
    metric: float | None = None
    change_low: float | None = None  # 95 % interval of metric - dense_metric
    change_high: float | None = None
    drift: float | None = None  # of the outputs on the calibration data, ||small - dense|| / ||dense||
    dense_ms: float | None = None  # one run of the input, both networks side by side
    small_ms: float | None = None
    time_share: float | None = None
    engine: str | None = None  # in which they were timed
    device: str | None = None  # on which they were timed, and with how many threads
    seconds: float | None = None  # to plan, apply, recover and evaluate it
    curves_seconds: float | None = None  # for the curves, which budgets share; less where they were kept from a stop
    plan: str | None = None  # a file of the folder
    error: str | None = None  # why there is no network, or no time

    @property
    def label(self) -> str:
        """The method, and whose it is."""
        return self.method if self.library == OURS else f"{self.method} ({self.library})"


def alike(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that differ by their seeds only, together."""
    groups: dict[tuple[str | None, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.net, row.label, row.budget), []).append(row)
    return list(groups.values())


def mean_of(rows: Iterable[Row], name: str) -> float | None:
    """The mean of a column where it is known; None where it is nowhere."""
    known = [value for row in rows if (value := getattr(row, name)) is not None]
    return mean(known) if known else None


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Write a Parquet file whole or not at all."""
    arrow, parquet = imported("pyarrow", _NEEDS), imported("pyarrow.parquet", _NEEDS)
    table = arrow.Table.from_pylist([row.model_dump() for row in rows], schema=_schema(arrow))
    written = io.BytesIO()
    parquet.write_table(table, written)
    write_bytes(file, written.getvalue())


def read_rows(file: Path, nets: Iterable[str]) -> list[Row]:
    """Rows of other libraries, or of another sweep, about networks of this one: from `.parquet` or `.csv`.

    Raises:
        TenfoldError: if the file is missing or none such, lacks a column, or says something that is not known.
    """
    if not file.is_file():
        raise TenfoldError(f"there is no file {file}.")
    table = _table(file)
    missing, unknown = ([n for n in NEEDED if n not in table.column_names], _beyond(table.column_names))
    if missing or unknown:
        what = f"lacks the column {missing[0]}" if missing else f"has an unknown column {unknown[0]}"
        raise TenfoldError(f"{file} {what}; rows need {', '.join(NEEDED)}, and may have {', '.join(_optional())}.")
    known, rows = set(nets), []
    for number, line in enumerate(table.to_pylist(), 1):
        row = _row(line, f"{file}, row {number}")
        if row.net not in known:
            raise TenfoldError(f'{file}, row {number}: this sweep has no network "{row.net}".')
        rows.append(row)
    return rows


def _table(file: Path) -> Any:
    arrow = imported("pyarrow", _NEEDS)
    try:
        if file.suffix == ".parquet":
            return imported("pyarrow.parquet", _NEEDS).read_table(file)
        csv = imported("pyarrow.csv", _NEEDS)
        types = {field.name: field.type for field in _schema(arrow)}
        how = csv.ConvertOptions(column_types=types, strings_can_be_null=True, null_values=[""])
        return csv.read_csv(file, convert_options=how)
    except arrow.ArrowException as error:
        raise TenfoldError(f"{file} cannot be read: {first_line(error)}") from None


def _row(line: Mapping[str, Any], where: str) -> Row:
    said = {name: value for name, value in line.items() if value is not None}
    missing = [name for name in NEEDED if name not in said and "error" not in said]
    if missing:
        raise TenfoldError(f"{where} has no {missing[0]}.")
    try:
        return Row(**said)
    except TenfoldError as error:
        raise TenfoldError(f"{where}: {error}") from None


def _beyond(names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in Row.model_fields]


def _optional() -> list[str]:
    return [name for name in Row.model_fields if name not in NEEDED]


def _schema(arrow: Any) -> Any:
    kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
    told = get_type_hints(Row)
    return arrow.schema([(name, kinds[(get_args(told[name]) or (told[name],))[0]]) for name in Row.model_fields])
