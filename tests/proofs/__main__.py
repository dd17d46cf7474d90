"""The command line: `python -m tests.proofs --help`."""

from __future__ import annotations

from .cli import main

main()
