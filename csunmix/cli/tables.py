"""Target tables that are written as they come: CSV, or Parquet by way of an Arrow stream.

A table is a run of bytes that can be cut off after any batch and gone on with. CSV is one. A
Parquet file is none, since it is unreadable without its end: its rows are kept as an Arrow stream,
which becomes the Parquet file, row group by row group, when it is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csunmix.io import is_parquet, require_pyarrow
from csunmix.targets import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 100_000  # of a row group, bounds the memory
_WHOLE = ("frame", "flags")


class CsvTable:
    """Rows of a CSV file."""

    def encode(self, table: pd.DataFrame, *, begins: bool) -> bytes:
        """`table` in bytes, with what stands before the first one if it `begins` the file."""
        return table.to_csv(index=False, header=begins, lineterminator="\n").encode()

    def finish(self, part: Path, out: Path) -> None:
        """Make `out` of the whole part, which goes away."""
        os.replace(part, out)


class ParquetTable:
    """Rows of a Parquet file, until then of an Arrow stream.

    Parameters
    ----------
    attrs : dict
        ``df.attrs`` of the table that `pandas.read_parquet` makes of the file.
    """

    def __init__(self, attrs: dict[str, Any]) -> None:
        import pyarrow as pa

        types = {name: pa.int64() if name in _WHOLE else pa.float64() for name in COLUMNS}
        about = {"PANDAS_ATTRS": json.dumps(attrs)}
        self._schema = pa.schema([*types.items(), ("image", pa.string())], metadata=about)

    def encode(self, table: pd.DataFrame, *, begins: bool) -> bytes:
        """See `CsvTable`."""
        import pyarrow as pa

        rows = pa.Table.from_pandas(table, schema=self._schema, preserve_index=False)
        rows = rows.replace_schema_metadata(self._schema.metadata)  # without pandas's own
        pieces = [self._schema] if begins else []
        pieces += rows.combine_chunks().to_batches()
        return b"".join(piece.serialize().to_pybytes() for piece in pieces)

    def finish(self, part: Path, out: Path) -> None:
        """See `CsvTable`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        new = out.with_name(f"{out.name}.new")  # one name: a killed run's is written over
        try:
            with part.open("rb") as rows, new.open("wb") as file:
                with pq.ParquetWriter(file, self._schema) as writer:
                    for group in self._groups(pa.ipc.open_stream(rows)):
                        writer.write_table(group)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, out)
        finally:
            new.unlink(missing_ok=True)
        part.unlink()

    def _groups(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The rows in groups of one size, whatever batches they came in."""
        import pyarrow as pa

        rest = self._schema.empty_table()
        for batch in batches:
            rest = pa.concat_tables([rest, pa.Table.from_batches([batch])])
            while len(rest) >= _ROWS:
                yield rest.slice(0, _ROWS).combine_chunks()
                rest = rest.slice(_ROWS)
        if len(rest):
            yield rest.combine_chunks()


def table_for(out: Path, attrs: dict[str, Any]) -> CsvTable | ParquetTable:
    """The kind of table that the name `out` asks for; only Parquet keeps `attrs`."""
    if not is_parquet(out):
        return CsvTable()
    require_pyarrow(out)
    return ParquetTable(attrs)
