"""All rows of all benchmarks, read once."""

from functools import cached_property

from benchmarks import _rows, latency, max_drop, oneshot, scale
from benchmarks._decompositions_rows import Results
from benchmarks._decompositions_rows import read as read_decompositions
from benchmarks.architectures import ROWS as ARCHITECTURES
from benchmarks.architectures import Row as ArchitectureRow
from benchmarks.decompositions import ROWS as DECOMPOSITIONS
from benchmarks.finetuning import ROWS as FINETUNING
from benchmarks.peers.__main__ import ROWS as PEERS
from benchmarks.peers._row import Row as PeerRow
from benchmarks.seeds import joint, methods, structure, tensor_train


class Evidence:
    """What every benchmark found, in the order of its file."""

    @cached_property
    def oneshot(self) -> list[_rows.Row]:
        """Right after compression, without labels."""
        return _rows.read(oneshot.ROWS)

    @cached_property
    def finetuning(self) -> list[_rows.Row]:
        """Compressed and fine-tuned."""
        return _rows.read(FINETUNING)

    @cached_property
    def max_drop(self) -> list[max_drop.Row]:
        """The smallest network that loses no more than allowed."""
        return _rows.read(max_drop.ROWS, max_drop.Row)

    @cached_property
    def latency(self) -> list[latency.Row]:
        """Measured time."""
        return _rows.read(latency.ROWS, latency.Row)

    @cached_property
    def scale(self) -> list[scale.Row]:
        """Large networks, wide layers, many machines."""
        return _rows.read(scale.ROWS, scale.Row)

    @cached_property
    def decompositions(self) -> Results:
        """CP and Tucker against tensorly."""
        return read_decompositions(DECOMPOSITIONS)

    @cached_property
    def architectures(self) -> list[ArchitectureRow]:
        """Many networks, through every stage."""
        return _rows.read(ARCHITECTURES, ArchitectureRow)

    @cached_property
    def peers(self) -> list[PeerRow]:
        """Other packages."""
        return [row for row in _rows.read(PEERS, PeerRow) if not row.quick]

    @cached_property
    def tensor_train(self) -> list[_rows.Row]:
        """The first seed system."""
        return _rows.read(tensor_train.ROWS)

    @cached_property
    def methods(self) -> list[methods.Row]:
        """The second."""
        return _rows.read(methods.ROWS, methods.Row)

    @cached_property
    def structure(self) -> list[structure.Row]:
        """The third."""
        return _rows.read(structure.ROWS, structure.Row)

    @cached_property
    def joint(self) -> list[_rows.Row]:
        """The fourth, trained."""
        return _rows.read(joint.ROWS)

    @cached_property
    def joint_oneshot(self) -> list[_rows.Row]:
        """The fourth, right after compression."""
        return _rows.read(joint.ONESHOT_ROWS)
