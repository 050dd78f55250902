"""A download that can't run away: http(s) only, bounded in bytes, in time and in redirects, stopped at the first wrong bytes.

Knows nothing of pictures; the caller says how what it wants begins.
"""

from __future__ import annotations

import threading
import time
from urllib.parse import urljoin, urlsplit

import requests

MAX_REDIRECTS = 5
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0  # between two packets


class FetchError(ValueError):
    """A URL that can't be had. ``url`` says which, ``reason`` why; the message is both."""

    def __init__(self, url: str, reason: str):
        super().__init__(f"{url}: {reason}")
        self.url, self.reason = url, reason


def fetch(url: str, *, begins_with: tuple[bytes, ...] = (b"",), max_bytes: int = 20_000_000, seconds: float = 30.0) -> bytes:
    """The bytes behind an http(s) URL.

    begins_with: the download stops when its first bytes are none of these.
    max_bytes: it stops as soon as more has come, whatever the server announced.
    seconds: the longest that the caller waits for the whole of it: name look-up, redirects, a server that drips.
    Every redirect is checked as the first address is. Compressed bodies are refused: they could grow after they were counted.

    Raises FetchError.
    """
    _check(url)
    deadline = time.monotonic() + seconds
    outcome: list[bytes | Exception] = []

    def work() -> None:
        try:
            outcome.append(_download(url, begins_with, max_bytes, deadline))
        except Exception as error:  # handed to the caller below
            outcome.append(error)

    # A socket's timeouts bound one read each; only a second thread bounds the whole, headers and name look-up included.
    worker = threading.Thread(target=work, daemon=True, name="spatialprobes-fetch")
    worker.start()
    worker.join(seconds)
    if not outcome:
        raise FetchError(url, f"not whole after {seconds:g} s, the time limit")
    result = outcome[0]
    if isinstance(result, bytes):
        return result
    if isinstance(result, FetchError):
        raise FetchError(url, result.reason) from result
    if isinstance(result, requests.Timeout):
        reason = f"the server did not answer in {CONNECT_SECONDS:g} s, or stopped sending for {READ_SECONDS:g} s"
        raise FetchError(url, reason) from result
    raise FetchError(url, f"can't be fetched: {_cause(result)}") from result


def _download(url: str, begins_with: tuple[bytes, ...], max_bytes: int, deadline: float) -> bytes:
    address = url
    with requests.Session() as session:
        for _ in range(MAX_REDIRECTS + 1):
            response = session.get(
                address,
                stream=True,
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                allow_redirects=False,
                headers={"Accept-Encoding": "identity"},
            )
            with response:
                if not response.is_redirect:
                    return _body(response, url, begins_with, max_bytes, deadline)
                address = urljoin(address, response.headers["location"])
                _check(address)
    raise FetchError(url, f"redirects more than {MAX_REDIRECTS} times")


def _body(response: requests.Response, url: str, begins_with: tuple[bytes, ...], max_bytes: int, deadline: float) -> bytes:
    if response.status_code != 200:
        raise FetchError(url, f"the server answers {response.status_code} {response.reason}")
    headers = response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise FetchError(url, f"comes compressed ({headers['Content-Encoding']}), which was not asked for")
    announced = int(headers["Content-Length"]) if headers.get("Content-Length", "").isdigit() else None
    if announced is not None and announced > max_bytes:
        raise FetchError(url, f"holds {announced:,} bytes; the limit is {max_bytes:,}")
    enough = max(map(len, begins_with))
    received = bytearray()
    while chunk := response.raw.read1(65536):  # read1 returns what has come, so the clock is looked at even when it drips
        received += chunk
        if len(received) > max_bytes:
            raise FetchError(url, f"holds more than {max_bytes:,} bytes, the limit")
        if len(received) >= enough and not received.startswith(begins_with):
            kind = headers.get("Content-Type", "no type given")
            raise FetchError(url, f"not what was asked for: begins with {bytes(received[:12])!r} ({kind})")
        if time.monotonic() > deadline:
            raise FetchError(url, "not whole within the time limit")
    if announced is not None and len(received) < announced:
        raise FetchError(url, f"the connection broke after {len(received):,} of {announced:,} bytes")
    if not received:
        raise FetchError(url, "holds zero bytes")
    return bytes(received)


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        legal = parts.scheme.lower() in ("http", "https") and parts.hostname
    except ValueError:  # such as a bracket without its other half
        legal = False
    if not legal:
        raise FetchError(url, f"{url!r} is refused: only http:// and https:// are fetched")


def _cause(error: Exception) -> str:
    """The innermost reason: requests wraps the system's words in several layers of its own."""
    while isinstance(inner := getattr(error, "reason", None) or (error.args and error.args[0]), Exception):
        error = inner
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
