"""Writes benchmarks/schema.json, the JSON schema of what `sctrt bench --json` writes.

python benchmarks/schema.py
"""

from __future__ import annotations

from pathlib import Path

from sctrt.bench.report import schema
from sctrt.files import write_json

PATH = Path(__file__).parent / "schema.json"

if __name__ == "__main__":
    write_json(PATH, schema())
