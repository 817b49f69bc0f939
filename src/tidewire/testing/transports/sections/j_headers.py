"""Section J: headers."""

# ruff: noqa: SIM300  (the expected value stands on the left)

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tidewire.testing.transports.bench import Bench


async def _round_trip(bench: Bench, headers: Mapping[str, str]) -> Mapping[str, str]:
    await bench.provision()
    (message,) = bench.messages(1)
    await bench.publish([msgspec.structs.replace(message, headers=headers)])
    async with bench.member() as reader:
        (delivery,) = await reader.consume(1)
    return delivery.message.headers


async def test_headers_roundtrip_unicode_empty_values_64(bench: Bench) -> None:
    """CF-103: sixty-four headers come back equal: empty ones, other scripts, quotes, line ends, long ones."""
    odd = ["", " ", "ü", "日本語 🎉", 'quote " and \\ slash', "a\r\nb", "x" * 4000, "\u0000", "%20", "null"]
    headers = {f"h-{number}": odd[number % len(odd)] for number in range(64)}
    assert headers == dict(await _round_trip(bench, headers))


async def test_no_headers_at_all(bench: Bench) -> None:
    """CF-103: a message without headers has none when it comes back."""
    assert {} == dict(await _round_trip(bench, {}))


async def test_header_case_and_order_defined(bench: Bench) -> None:
    """CF-104: names come back as they were written, and in the order in which they were written."""
    headers = {"zeta": "1", "alpha": "2", "x-Mixed": "3", "beta": "4"}
    assert list(headers.items()) == list((await _round_trip(bench, headers)).items())


async def test_foreign_headers_preserved(bench: Bench) -> None:
    """CF-106: headers nobody here knows survive beside ours."""
    headers = {"ce-type": "a.b.c", "x-b3-traceid": "80f1", "user-agent": "node", "tw-failure": "{}", "dl-reason": "x"}
    assert headers == dict(await _round_trip(bench, headers))


async def test_trace_context_roundtrip(bench: Bench) -> None:
    """CF-107: trace context comes back character by character."""
    headers = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
    }
    assert headers == dict(await _round_trip(bench, headers))
