"""Whether the promises about many servers hold: `python -m tests.proofs --help`."""
