"""Clients of a vLLM server that are not ours: threads that stream completions by token ids, one request after another."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.parse
from dataclasses import dataclass, field


@dataclass
class Request:
    """One streamed completion as its client saw it. `at` are the arrival times of the chunks' tokens."""

    prompt: list[int]
    began: float
    tokens: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    spans: list[dict] | None = None
    finish: str | None = None
    error: str | None = None

    def gaps(self) -> list[tuple[float, float]]:
        """(when it began, how long) for every wait for a token but the first."""
        return [(a, b - a) for a, b in zip(self.at, self.at[1:], strict=False)]


def complete(url: str, prompt: list[int], tokens: int, request: Request | None = None, **sampling: object) -> Request:
    request = request or Request(prompt, time.monotonic())
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=180)
    body = {"model": "m", "token_ids": prompt, "stream": True,
            "sampling_params": {"temperature": 0.0, "max_tokens": tokens, "ignore_eos": True, "detokenize": False} | sampling}  # fmt: skip
    try:
        connection.request("POST", "/inference/v1/generate", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            request.error = f"{response.status}: {response.read()[:300]!r}"
            return request
        for line in response:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if "choices" not in chunk:
                request.error = str(chunk)[:300]
                continue
            for choice in chunk["choices"]:
                request.tokens += choice.get("token_ids") or []
                request.at += [time.monotonic()] * len(choice.get("token_ids") or [])
                request.finish = choice.get("finish_reason") or request.finish
                request.spans = choice.get("weight_versions") or request.spans
    except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
        request.error = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return request


class Load:
    """`clients` threads that each keep one request in flight until stop(); prompts share prefixes, so the cache is hit."""

    def __init__(self, url: str, clients: int, tokens: int) -> None:
        self.requests: list[Request] = []
        self._url, self._tokens, self._stop = url, tokens, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        random_ = random.Random(number)
        shared = [random.Random(7).randrange(3, 300) for _ in range(70)]  # more than two blocks that all prompts share
        while not self._stop.is_set():
            prompt = shared + [random_.randrange(3, 300) for _ in range(random_.randint(1, 6))]
            request = Request(prompt, time.monotonic())
            self.requests.append(request)
            complete(self._url, prompt, random_.randint(self._tokens // 2, self._tokens), request)

    def stop_when_idle(self) -> None:
        """No further request begins."""
        self._stop.set()

    def stop(self) -> list[Request]:
        """Lets what is in flight end; every request of this load."""
        self._stop.set()
        for thread in self._threads:
            thread.join(180)
        return self.requests

    def longest_gap_s(self, begin: float, end: float) -> float:
        """The longest wait for a token, of any request, that touches the time from `begin` to `end`."""
        return max((gap for request in list(self.requests) for at, gap in request.gaps() if at <= end and at + gap >= begin), default=0.0)

    def usual_gap_s(self, until: float) -> float:
        gaps = sorted(gap for request in list(self.requests) for at, gap in request.gaps() if at + gap < until)
        return gaps[len(gaps) // 2] if gaps else 0.0
