"""A wire between a client and a PostgreSQL server that is cut at a commit: before it arrives, or before its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Literal

Cut = Literal["never", "before", "after"]


class CommitProxy:
    """*cut* says what happens to the next transaction that writes; *down*: nobody is let in."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.cut: Cut = "never"
        self.down = False
        self.cuts = 0
        self._server_port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[object]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection."""
        if self.down:
            writer.close()
            return
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers |= {writer, their_writer}
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        try:
            async with asyncio.TaskGroup() as tasks:
                back = tasks.create_task(self._back(their_reader, writer))
                await self._forth(reader, (their_reader, their_writer), back)
                back.cancel()
        finally:
            for one in (writer, their_writer):
                self._writers.discard(one)
                one.close()
            self._serving.discard(serving)

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass  # whoever has ended it, the other side is told
        writer.close()

    async def _forth(
        self,
        reader: asyncio.StreamReader,
        theirs: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        back: asyncio.Task[None],
    ) -> None:
        answers, writer = theirs
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self.cut != "never" and b"COMMIT" in data:
                    how, self.cut = self.cut, "never"
                    self.cuts += 1
                    back.cancel()
                    await asyncio.wait([back])
                    if how == "after":
                        writer.write(data)
                        await writer.drain()
                        said = b""
                        while b"COMMIT\0" not in said and (more := await answers.read(65_536)):
                            said += more  # it is committed; the answer has come to nobody
                    return
                writer.write(data)
                await writer.drain()

    async def cut_all(self) -> None:
        """End every connection."""
        for writer in list(self._writers):
            writer.close()
        if self._serving:
            await asyncio.wait(self._serving, timeout=5)


@asynccontextmanager
async def commit_proxy(port: int) -> AsyncGenerator[CommitProxy]:
    """Stand in front of the server at *port*."""
    proxy = CommitProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.cut_all()
