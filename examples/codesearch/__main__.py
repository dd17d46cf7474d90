"""`python -m examples.codesearch`; `--help` lists the options."""

import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        # Imported here, so that a Ctrl-C during the imports ends in one line as well.
        from .cli import main as run  # noqa: PLC0415

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        # Before the first process was started, or after the last one ended: between them `cli` handles it.
        print("SIGINT: stopped, and no worker is left.", file=sys.stderr)
        return 130


sys.exit(main())
