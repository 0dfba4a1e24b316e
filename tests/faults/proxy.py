"""A TCP proxy between services and a server: a network that can be cut, silenced and slowed.

Of what PyPI has, nothing brings a proxy with it whose connections can be handled so.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Final

_CHUNK: Final = 2**16


class Proxy:
    """Leads connections to `port` on to `target`, both on loopback.

    Args:
        port: that it listens on.
        target: port of the server.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port, self._target = port, target
        self._delay = 0.0
        self._links: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}")
        self._thread.start()
        self._do(self._listen())

    def cut(self) -> None:
        """End every connection at once and refuse new ones."""
        self._do(self._cut())

    def freeze(self) -> None:
        """Take connections and bytes, and lead none of them on."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def delay(self, seconds: float) -> None:
        """Lead what callers send on so much later."""
        self._delay = seconds

    def mend(self) -> None:
        """Be a good network again."""
        self._delay = 0.0
        self._loop.call_soon_threadsafe(self._flowing.set)
        self._do(self._listen())

    def close(self) -> None:
        """End for good."""
        self._loop.call_soon_threadsafe(self._flowing.set)
        self._do(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        ends = [writer]
        try:
            await self._flowing.wait()
            beyond, onward = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(onward)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._lead(reader, onward, delayed=True))
                group.create_task(self._lead(beyond, writer, delayed=False))
        except* (OSError, asyncio.CancelledError):
            pass  # the other end, or we, have ended it
        finally:
            for end in ends:
                end.transport.abort()
            self._links.discard(link)

    async def _lead(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, delayed: bool
    ) -> None:
        """Lead bytes one way, in order, each piece when it is due."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def send() -> None:
            while True:
                due, piece = await line.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._flowing.wait()
                if not piece:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()

        async def receive() -> None:
            while True:
                piece = await reader.read(_CHUNK)
                await line.put((self._loop.time() + (self._delay if delayed else 0.0), piece))
                if not piece:
                    return

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            group.create_task(receive())
