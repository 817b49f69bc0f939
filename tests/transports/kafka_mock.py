"""librdkafka's mock cluster, in this process: brokers that can be told to fail, and to move what leads a partition.

Its functions are not part of the client library's Python package; they are reached by ctypes in the library it brings.
It creates no topics and has no settings: whoever uses it makes the topics here.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka

PRODUCE, FETCH, OFFSET_COMMIT, OFFSET_FETCH, HEARTBEAT = 0, 1, 8, 9, 68
"""Kinds of requests; a heartbeat is that of the newer protocol of groups."""
NOT_LEADER, NOT_ENOUGH_REPLICAS, TIMED_OUT, NOT_COORDINATOR, CUT = 6, 19, 7, 16, -195
"""What a broker can be told to answer; the last one ends the connection."""

_POINTER, _INT, _SHORT, _TEXT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int16, ctypes.c_char_p, ctypes.c_size_t


class Library:
    """The functions of the client library that confluent-kafka has loaded."""

    def __init__(self) -> None:
        (path,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka-*.so*")
        self._loaded = ctypes.CDLL(str(path))

    def call(self, name: str, result: Any, *arguments: tuple[Any, Any]) -> Any:
        """Call a function: each argument is its C type and its value."""
        function = self._loaded[f"rd_kafka_{name}"]
        function.restype, function.argtypes = result, [kind for kind, _ in arguments]
        return function(*(value for _, value in arguments))


class MockCluster:
    """Some brokers. *address* is what clients connect to."""

    def __init__(self, library: Library, mock: Any) -> None:
        self._library = library
        self._mock = mock
        self.address = library.call("mock_cluster_bootstraps", _TEXT, (_POINTER, mock)).decode()

    def make(self, topic: str, partitions: int) -> None:
        """Make a topic with three replicas."""
        arguments = ((_TEXT, topic.encode()), (_INT, partitions), (_INT, 3))
        assert 0 == self._library.call("mock_topic_create", _INT, (_POINTER, self._mock), *arguments)

    def fail(self, request: int, *errors: int) -> None:
        """Answer the next requests of a kind with these errors, in turn."""
        array = (ctypes.c_int * len(errors))(*errors)
        arguments = ((_SHORT, request), (_SIZE, len(errors)), (ctypes.POINTER(ctypes.c_int), array))
        self._library.call("mock_push_request_errors_array", None, (_POINTER, self._mock), *arguments)

    def lead(self, topic: str, partition: int, broker: int) -> None:
        """Let *broker* lead a partition."""
        arguments = ((_TEXT, topic.encode()), (_INT, partition), (_INT, broker))
        assert 0 == self._library.call("mock_partition_set_leader", _INT, (_POINTER, self._mock), *arguments)

    def coordinate(self, group: str, broker: int) -> None:
        """Let *broker* coordinate a group."""
        arguments = ((_TEXT, b"group"), (_TEXT, group.encode()), (_INT, broker))
        assert 0 == self._library.call("mock_coordinator_set", _INT, (_POINTER, self._mock), *arguments)

    def slow(self, broker: int, milliseconds: int) -> None:
        """Let *broker* answer so late."""
        arguments = ((_INT, broker), (_INT, milliseconds))
        assert 0 == self._library.call("mock_broker_set_rtt", _INT, (_POINTER, self._mock), *arguments)


@contextlib.contextmanager
def mock_cluster(brokers: int = 3) -> Iterator[MockCluster]:
    """Run a mock cluster in this process while the block lasts."""
    library = Library()
    error = ctypes.create_string_buffer(512)
    conf = library.call("conf_new", _POINTER)
    client = library.call(
        "new", _POINTER, (_INT, 0), (_POINTER, conf), (_TEXT, ctypes.cast(error, _TEXT)), (_SIZE, 512)
    )
    assert client, error.value.decode()
    mock = library.call("mock_cluster_new", _POINTER, (_POINTER, client), (_INT, brokers))
    try:
        library.call("mock_group_initial_rebalance_delay_ms", None, (_POINTER, mock), (_INT, 0))
        yield MockCluster(library, mock)
    finally:
        library.call("mock_cluster_destroy", None, (_POINTER, mock))
        library.call("destroy", None, (_POINTER, client))
