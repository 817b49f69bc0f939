"""A sync that fails ends the use of a file in this process: the kernel may have dropped what it was given (SQ7)."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

STORE = """
import asyncio, os, sys
from tidewire import transaction
from tidewire.errors import StoreRefused
from tidewire.stores.sqlite import open_sqlite_store

async def insert(store, text):
    try:
        async with transaction(store) as tx:
            await tx.execute("INSERT INTO seen VALUES (?)", (text,))
    except StoreRefused:
        return print("refused", text)
    print("stored", text)

async def main(path, flag):
    async with open_sqlite_store(path) as store:
        async with transaction(store) as tx:
            await tx.execute("CREATE TABLE IF NOT EXISTS seen (text TEXT)")
        await insert(store, "before")
        open(flag, "w").close()
        await insert(store, "during")
        os.unlink(flag)
        await insert(store, "after")

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""
BROKER = """
import asyncio, os, sys
from tidewire.errors import TransportRefused
from tidewire.model import Message, Topic, TopicSpec
from tidewire.transports.sqlite import open_sqlite_transport

async def publish(broker, text):
    try:
        (receipt,) = await broker.publish([Message(Topic("t"), text, "s", None, {}, b"")])
    except TransportRefused:
        return print("refused", text)
    print("stored" if receipt.ok else "lost", text)

async def main(path, flag):
    async with open_sqlite_transport(path) as broker:
        await broker.provision([TopicSpec("t", lanes=1)], [])
        await publish(broker, "before")
        open(flag, "w").close()
        await publish(broker, "during")
        os.unlink(flag)
        await publish(broker, "after")

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""

BROKER_WRITES = """
import asyncio, sys
from tidewire.errors import TransportRefused
from tidewire.model import Message, Topic, TopicSpec
from tidewire.transports.sqlite import open_sqlite_transport

async def main(path, flag):
    async with open_sqlite_transport(path) as broker:
        await broker.provision([TopicSpec("t", lanes=1)], [])
        open(flag, "w").close()
        for number in range(400):
            try:
                (receipt,) = await broker.publish([Message(Topic("t"), "", "s", None, {}, bytes(1 << 16))])
            except TransportRefused:
                return print(number)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""
STORE_WRITES = """
import asyncio, sys
from tidewire import transaction
from tidewire.errors import StoreRefused
from tidewire.stores.sqlite import open_sqlite_store

async def main(path, flag):
    async with open_sqlite_store(path) as store:
        async with transaction(store) as tx:
            await tx.execute("CREATE TABLE log (body BLOB)")
        open(flag, "w").close()
        for number in range(400):
            try:
                async with transaction(store) as tx:
                    await tx.execute("INSERT INTO log VALUES (?)", (bytes(1 << 16),))
            except StoreRefused:
                return print(number)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes syncs fail; where there is no C compiler the test says that it did not run."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("not proven: failing syncs need a C compiler (cc) on Linux")
    library = tmp_path_factory.mktemp("preload") / "failing_sync.so"
    source = Path(__file__).with_name("failing_sync.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


@pytest.mark.parametrize("program", [STORE, BROKER], ids=["store", "broker"])
def test_after_a_failed_sync_nothing_is_written(preload: Path, tmp_path: Path, program: str) -> None:
    """ST-14: nothing is confirmed while syncs fail, nor afterwards by this process; the next process goes on."""
    flag = tmp_path / "flag"
    environment = {**os.environ, "LD_PRELOAD": str(preload), "FAILING_SYNC": str(flag)}
    command = [sys.executable, "-c", program, str(tmp_path / "file.db"), str(flag)]
    first = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ["stored before", "refused during", "refused after"] == first.stdout.splitlines(), first.stderr
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "stored before" == second.stdout.splitlines()[0], second.stderr


@pytest.mark.parametrize("program", [STORE_WRITES, BROKER_WRITES], ids=["store", "broker"])
def test_a_sync_that_fails_in_a_checkpoint_ends_the_use_of_the_file(
    preload: Path, tmp_path: Path, program: str
) -> None:
    """ST-14: the commit before it stands and is reported as stored; nothing is written after it, nothing is lost."""
    flag, file = tmp_path / "flag", tmp_path / "file.db"
    environment = {**os.environ, "LD_PRELOAD": str(preload), "FAILING_SYNC": str(flag), "FAILING_SYNC_OF": "/file.db"}
    command = [sys.executable, "-c", program, str(file), str(flag)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    stored = int(done.stdout)
    assert 0 < stored < 400
    with closing(sqlite3.connect(file)) as connection:
        assert (stored,) == connection.execute("SELECT count(*) FROM log").fetchone()
