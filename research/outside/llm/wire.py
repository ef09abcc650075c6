"""HTTP for the providers' SDKs: bounded in bytes and in time, without retries or redirects of its own.

An SDK's own time-out is per read, so that a server which sends a byte now and then holds it for ever; and it reads
whatever it is sent. Both are bounded here, for every SDK alike.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from research.outside.llm.fault import Fault

MAX_BYTES = 32 << 20  # of a response: what is merely too long to use still says in its last bytes what it has cost
LONGEST_PAUSE_S = 86400.0
TOO_LONG = re.compile(r"(?i)context.{0,20}(length|window|size)|(prompt|input|request) is too long|input token count|"
                      r"max_tokens must")


class TooLong(httpx2.TransportError):
    """A response of more than MAX_BYTES, or in an encoding that might hold as much."""


class _Bounded(httpx2.SyncByteStream):
    def __init__(self, stream: Any, deadline_s: float):
        self.stream, self.deadline_s = stream, deadline_s

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self.stream:
            size += len(chunk)
            if size > MAX_BYTES:
                raise TooLong(f"the response is longer than {MAX_BYTES >> 20} MiB")
            if time.monotonic() > self.deadline_s:
                raise httpx2.ReadTimeout("the response was not over in time")
            yield chunk

    def close(self) -> None:
        self.stream.close()


def _begin(request: httpx2.Request) -> None:
    timeout_s = request.extensions.get("timeout", {}).get("read")
    request.extensions["deadline"] = time.monotonic() + (timeout_s or math.inf)


def _bound(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise TooLong("a compressed response, which nobody asked for")
    response.stream = _Bounded(response.stream, response.request.extensions["deadline"])


def client() -> httpx2.Client:
    """A client for an SDK. Redirects are not followed: a key in a header would go with them."""
    return httpx2.Client(event_hooks={"request": [_begin], "response": [_bound]}, follow_redirects=False,
                         headers={"accept-encoding": "identity"})


def fault(error: Exception) -> Fault:
    """What an exception of an SDK or of HTTP amounts to; its text is not cleaned yet."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 8:
        chain.append(cause)
    for each in chain:
        if isinstance(each, Fault):
            return each
        if isinstance(each, TooLong):
            return Fault("garbage", str(each))
        if isinstance(each, httpx2.TimeoutException):
            return Fault("timeout", str(each) or "no answer in time")
        if isinstance(each, httpx2.TransportError):
            return Fault("unreachable", f"{type(each).__name__}: {each}")
        if (response := getattr(each, "response", None)) is not None:
            return _refusal(response)
    return Fault("garbage", f"{type(error).__name__}: {str(error)[:1000]}")


def _refusal(response: httpx2.Response) -> Fault:
    """A response whose status is an error."""
    status, text = response.status_code, response.text[:1000]
    outcome = "rate_limited" if status == 429 else "server_error" if status >= 500 else "refused"
    if status == 408:
        outcome = "timeout"
    if status == 200:  # it is the body that the SDK could not read
        return Fault("garbage", f"not the JSON that was expected: {text}")
    if status >= 400 and status not in (401, 403, 429) and TOO_LONG.search(text):
        outcome = "too_long"
    return Fault(outcome, f"HTTP {status}: {text}", pause_s=pause_s(response), status=status)


def pause_s(response: httpx2.Response) -> float:
    """Seconds that a server asks to wait: its Retry-After (seconds or a date), or the RetryInfo of Google's errors."""
    text = response.headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        seconds = _until(text) if text else _retry_info(response)
    return min(max(0.0, seconds), LONGEST_PAUSE_S) if math.isfinite(seconds) else 0.0


def _until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def _retry_info(response: httpx2.Response) -> float:
    try:
        details = json.loads(response.content[:10_000])["error"]["details"]
        return next(float(item["retryDelay"].removesuffix("s")) for item in details if "retryDelay" in item)
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return 0.0
