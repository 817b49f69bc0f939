"""A proxy in front of a broker, in a process of its own: it cuts connections, swallows one direction, or is slow.

    python kafka_proxy.py LISTEN_PORT TARGET_PORT

says the port on which it listens (any that is free, if it was told 0), then takes commands on standard input, one a
line, and answers each with one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator


class Proxy:
    """The tests' side."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None, "opened with pipes"
        self._process = process
        self.port = int(process.stdout.readline())

    def say(self, command: str) -> None:
        """Give a command and wait until it has been done.

        ``cut``: end every connection · ``quiet``: pass nothing on to the clients · ``deaf``: pass nothing on to the
        broker · ``slow``: pass on 20 kB a second each way · ``forget``: never again pass anything on to the clients
        that are connected now · ``go``: everything as usual.
        """
        assert self._process.stdin is not None, "opened with pipes"
        assert self._process.stdout is not None, "opened with pipes"
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        assert f"{command}\n" == self._process.stdout.readline()


@contextlib.contextmanager
def proxy(listen: int, target: int) -> Iterator[Proxy]:
    """Run a proxy from one port of 127.0.0.1, 0 for any that is free, to another."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(listen), str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            running = Proxy(process)
            running.say("go")
            yield running
        finally:
            process.kill()


class _Side:
    """One direction of what passes. Connections whose writer is *forgotten* pass nothing on."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.slow = False
        self.forgotten: set[asyncio.StreamWriter] = set()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2_000 if self.slow else 65_536):
                await self.open.wait()
                if writer in self.forgotten:
                    continue
                if self.slow:
                    await asyncio.sleep(len(data) / 20_000)
                writer.write(data)
                await writer.drain()
        writer.close()


async def _serve(listen: int, target: int) -> None:
    to_broker, to_client = _Side(), _Side()
    writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind, onward = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        writers.update((writer, onward))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(to_broker.pump(reader, onward))
            tasks.create_task(to_client.pump(behind, writer))
        writers.difference_update((writer, onward))

    server = await asyncio.start_server(connected, "127.0.0.1", listen)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    async with server:
        while command := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            for side, word in ((to_broker, "deaf"), (to_client, "quiet")):
                side.slow = command == "slow"
                if command == word:
                    side.open.clear()
                else:
                    side.open.set()
            if command == "forget":
                to_client.forgotten.update(writers)
            if command == "cut":
                for writer in list(writers):
                    writer.transport.abort()
            print(command, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
