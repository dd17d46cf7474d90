"""R09: 10,000 connections that do nothing: what each costs the server, and how soon it notices that all are gone.

The clients are bytes by hand in a process of their own. They say HELLO and answer pings: the server pings each of them
after 10 s of silence, which its own pings are a sign of life against, so this is what honest pools on the other side
would cost it as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from .parts import Part, open_parts
from .report import Proof, Report, duration

__all__ = ["PROOF"]

INTERVAL = 10.0
KIB = 1024
AT_MOST_MEMORY = 20 * KIB
AT_MOST_CPU = 0.15
REAPED_WITHIN = 5.0


@dataclass(frozen=True)
class Size:
    """How much is enough."""

    connections: int
    seconds: float
    interval: float
    """Seconds of silence before a ping."""


FULL, QUICK = Size(10_000, 40.0, INTERVAL), Size(300, 2.5, 1.0)


def run(quick: bool, _seed: int) -> Report:
    """Open them, watch them, and kill them."""
    return trio.run(_run, QUICK if quick else FULL)


async def _run(size: Size) -> Report:
    report = Report(["connections", "server memory", "each", "CPU of one core", "pings answered", "all reaped after"])
    limits = {"max_connections": size.connections + 10, "max_connections_per_principal": size.connections}
    async with open_parts() as parts:
        server, address = await parts.start("target", limits=limits, heartbeat=(size.interval, 5.0))
        holder, _ = await parts.start("holder")
        await server.ask("collect")
        before = server.memory()
        await holder.ask("open", target=address, count=size.connections)
        await server.ask("collect")
        grown = server.memory() - before
        share, pings = await _watch(size, server, holder)
        evicted = (await server.ask("statistics"))["evicted"]
        still = (await server.ask("statistics"))["connections"]
        reaped = await _vanish(server, holder)
        each = grown / size.connections
        figures = [f"{size.connections:,}", f"{grown / KIB**2:.1f} MiB", f"{each / KIB:.1f} KiB", f"{share:.1%}"]
        report.rows.append([*figures, f"{pings['pings']:,}", duration(reaped)])
        of = f"{size.connections:,} idle connections"
        report.bar(f"{of}: at most 20 KiB of server memory each", f"{each / KIB:.1f} KiB", each <= AT_MOST_MEMORY)
        what = f"with a heartbeat of {size.interval:g} s at most 15 % of a core"
        report.bar(f"{of}: {what}", f"{share:.1%}, over {size.seconds:g} s", share <= AT_MOST_CPU)
        gone = evicted + pings["ended"] + size.connections - still
        due = int(size.seconds / size.interval) - 1
        report.bar(
            f"{of}: every ping is answered, and nobody is evicted",
            f"{pings['pings']:,} pings, {pings['least']} to {pings['most']} for each; {gone} connections lost",
            gone == 0 and pings["least"] >= due,
        )
        report.bar(f"{of}: killed, all are reaped within 5 s", duration(reaped), reaped <= REAPED_WITHIN)
        parts.judge_logs(report, server)
    return report


async def _watch(size: Size, server: Part, holder: Part) -> tuple[float, dict[str, int]]:
    """The server's share of a core, and what became of its pings meanwhile."""
    start, cpu, before = trio.current_time(), server.cpu(), await holder.ask("count")
    await trio.sleep(size.seconds)
    share = (server.cpu() - cpu) / (trio.current_time() - start)
    pings = await holder.ask("count")
    return share, {name: pings[name] - before[name] for name in ("pings", "least", "most")} | {"ended": pings["ended"]}


async def _vanish(server: Part, holder: Part) -> float:
    """Kill the clients. Seconds until the server holds none of their connections."""
    start = trio.current_time()
    await holder.kill()
    with trio.move_on_after(4 * REAPED_WITHIN):
        while True:
            if not (await server.ask("statistics"))["connections"]:
                break
            await trio.sleep(0.05)
    return trio.current_time() - start


PROOF = Proof("10,000 idle connections: server memory, CPU of the heartbeat, and the end of all at once", run)
