"""The public test kit: connections in memory, faults to put in their way, and checks of what is left behind.

- `open_loopback`: a pool over a real server in memory, in one line.
- `MemoryListener`, `memory_pipe`: the parts of it: connections, and two connected streams with bounded buffers.
- `FaultyStream` with `Delay`, `Drop`, `Cut`, `Trickle`, `Freeze`: any stream, broken in a named way; `Recorder` keeps
  what passes. `Fault` is the base for faults of your own.
- `cancel_at_every_checkpoint`: a scenario, cancelled at every place where it can be.
- `no_leaks`, `assert_no_leaks`: no task, file descriptor or call is left behind.

All of it moves on Trio's clock alone, so that under `trio.testing.MockClock` every duration is exact.
"""

from ._cancelling import cancel_at_every_checkpoint as cancel_at_every_checkpoint
from ._faults import (
    Cut as Cut,
    Delay as Delay,
    Drop as Drop,
    Freeze as Freeze,
    Passage as Passage,
    Recorder as Recorder,
    Trickle as Trickle,
)
from ._faulty import Fault as Fault, FaultyStream as FaultyStream
from ._leaks import (
    HasStatistics as HasStatistics,
    LeakWatch as LeakWatch,
    assert_no_leaks as assert_no_leaks,
    no_leaks as no_leaks,
)
from ._loopback import MemoryListener as MemoryListener, open_loopback as open_loopback
from ._pipes import MemoryStream as MemoryStream, PipeStatistics as PipeStatistics, memory_pipe as memory_pipe

__all__ = [
    "Cut",
    "Delay",
    "Drop",
    "Fault",
    "FaultyStream",
    "Freeze",
    "HasStatistics",
    "LeakWatch",
    "MemoryListener",
    "MemoryStream",
    "Passage",
    "PipeStatistics",
    "Recorder",
    "Trickle",
    "assert_no_leaks",
    "cancel_at_every_checkpoint",
    "memory_pipe",
    "no_leaks",
    "open_loopback",
]

for _name in __all__:
    # The name that users see in a repr or a traceback is the one that they import.
    globals()[_name].__module__ = __name__
