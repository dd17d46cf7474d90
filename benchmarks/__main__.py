"""The command line: `python -m benchmarks --help`."""

from __future__ import annotations

from .cli import main

main()
