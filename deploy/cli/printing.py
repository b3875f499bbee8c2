"""Reports on standard output: one JSON object, or aligned columns."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec


def print_json(value: Any) -> None:
    """One JSON object on one line."""
    print(json.dumps(msgspec.to_builtins(value), allow_nan=False))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; numbers are right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headings), *cells]) for i in range(len(headings))]
    right = [bool(rows) and all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(headings))]
    for row in [list(headings), *cells]:
        padded = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)]
        print("  ".join(padded).rstrip())
