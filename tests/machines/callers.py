"""Callers on a machine of their own: backends that ask the gateways, people who ask the pages.

Reads the pictures that must be found, as JSON, from a line of its input; says `asking` when it has
been answered for the first time; asks until its input ends, then writes what it was told, as JSON.
"""

import base64
import json
import random
import socket
import sys
import threading
import time
from typing import Any, Final

import urllib3

from cra.shared.settings import Settings
from tests.faults.traffic import Answers, Askers
from tests.servers import wait_until

PAGE_PAUSE: Final = 0.25
CONNECTS_WITHIN: Final = 2.0
ANSWERS_WITHIN: Final = 16.0
"""Seconds; longer than a page waits for a gateway."""


class Visitors:
    """Search by the page's JSON until stopped; who is told nothing asks at the other address.

    That is what a browser does that knows two addresses of a name, and what a proxy does.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._http = urllib3.PoolManager(
            retries=False, timeout=urllib3.Timeout(connect=CONNECTS_WITHIN, read=ANSWERS_WITHIN)
        )
        self._stop = threading.Event()
        self.answers = Answers()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> Answers:
        """Stop asking; return what was answered."""
        self._stop.set()
        self._thread.join()
        return self.answers

    def _run(self) -> None:
        while not self._stop.wait(PAGE_PAUSE):
            began = time.monotonic()
            problem = self._ask(self.answers.asked)
            self.answers.asked += 1
            self.answers.slowest = max(self.answers.slowest, time.monotonic() - began)
            if problem:
                self.answers.failed[problem] += 1
                self.answers.told[problem] += 1

    def _ask(self, turn: int) -> str:
        """Ask one thing; return what is wrong with the answer."""
        found = socket.getaddrinfo(self._host, self._port, socket.AF_INET, socket.SOCK_STREAM)
        addresses = [str(one[4][0]) for one in found]
        random.shuffle(addresses)
        problem = "the page has no address"
        for address in addresses:
            try:
                answer = self._http.request(
                    "POST",
                    f"http://{address}:{self._port}/api/search",
                    json={"text": f"灰瓦{turn}", "top_k": 5},
                )
            except urllib3.exceptions.HTTPError as error:
                problem = f"{type(error).__name__} at {address}"
                continue
            if answer.status == 200:
                return "" if len(answer.json()["hits"]) == 5 else "a page of fewer hits"
            problem = f"{answer.status} {answer.data.decode()[:200]}"
        return problem


def main() -> None:
    """Ask."""
    settings = Settings.load()
    anchors = {
        key: base64.b64decode(data) for key, data in json.loads(sys.stdin.readline()).items()
    }
    askers = Askers(settings, anchors, names="")
    visitors = Visitors("web", settings.web_port)
    try:
        wait_until(lambda: askers.answers.asked > 2 and visitors.answers.asked > 0, "an answer", 60)
        print("asking", flush=True)  # noqa: T201
        sys.stdin.read()
    finally:
        told = [_as_json(askers.stop()), _as_json(visitors.stop())]
    print(json.dumps(told, ensure_ascii=False), flush=True)  # noqa: T201


def _as_json(answers: Answers) -> dict[str, Any]:
    return {
        "asked": answers.asked,
        "failed": dict(answers.told),
        "wrong": answers.wrong,
        "slowest": answers.slowest,
        "releases": sorted(answers.releases),
    }


if __name__ == "__main__":
    main()
