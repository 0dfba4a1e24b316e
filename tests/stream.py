"""A stream of searches that is checked afterwards against the towers themselves."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cra.search.v1 import search_pb2 as pb
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.client import SearchClient
from cra.shared.domain import Vector

PAGE: Final = 8
ALIKE: Final = 2e-3
"""Two computations of one cosine differ by less; those of two image towers by far more."""

Target = tuple[str, str]
"""An image tower and a text release."""


@dataclass(frozen=True)
class Answer:
    """One search, as it was answered."""

    at: float
    """Seconds since the epoch."""
    kind: str
    asked: str
    """The text or image_id."""
    target: Target
    scores: Mapping[str, float]


@dataclass
class Stream:
    """Searches without a pause, from several threads; no failure is tried again."""

    target: str
    texts: Sequence[str]
    image_ids: Sequence[str]
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator["Stream"]:
        """Ask until the block ends."""
        threads = [
            threading.Thread(target=self._ask, args=(kind, number))
            for number, kind in enumerate(["text", "text", "image_id", "pages", "token"])
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(60)

    def of(self, kind: str = "", since: float = 0.0) -> list[Answer]:
        """Return the answers of a kind from a time on."""
        return [one for one in list(self.answers) if one.at >= since and kind in {"", one.kind}]

    def _ask(self, kind: str, turn: int) -> None:
        with SearchClient(self.target, timeout=20) as client:
            first: pb.SearchResponse | None = None
            while not self._stop.is_set():
                turn += 1
                try:
                    if kind == "token":
                        # One token from before the move, shown again and again.
                        first = first or self._search(client, kind, self.texts[0])
                        self._search(client, kind, self.texts[0], first)
                    elif kind == "pages":
                        text = self.texts[turn % len(self.texts)]
                        page = self._search(client, kind, text)
                        for _ in range(2):
                            page = self._search(client, kind, text, page)
                    else:
                        asked = self.texts if kind == "text" else self.image_ids
                        self._search(client, kind, asked[turn % len(asked)])
                except Exception as error:  # whatever it is, a search has failed
                    self.failures.append(f"{kind}: {error!r}")

    def _search(
        self, client: SearchClient, kind: str, asked: str, after: pb.SearchResponse | None = None
    ) -> pb.SearchResponse:
        token = after.next_page_token if after else ""
        request = pb.SearchRequest(top_k=PAGE, page_token=token)
        setattr(request, "image_id" if kind == "image_id" else "text", asked)
        found = client.call(request)
        target = (found.image_tower, found.text_release)
        scores = {hit.image_id: hit.score for hit in found.hits}
        if after is not None:
            assert target == (after.image_tower, after.text_release), "a page is of another tower"
            assert min(hit.score for hit in after.hits) >= max(scores.values()) - 1e-6
        self.answers.append(Answer(time.time(), kind, asked, target, scores))
        return found


@dataclass
class Truth:
    """What the two image towers themselves make of pictures and texts."""

    images: Mapping[str, Mapping[str, Vector]]
    """By image tower and image_id."""
    encoders: Mapping[str, RemoteEncoder]
    """By image tower."""
    _texts: dict[tuple[Target, str], Vector] = field(default_factory=dict)

    def check(self, answer: Answer) -> None:
        """Check that the scores are those of the image tower and release that an answer names."""
        tower, release = answer.target
        images = self.images[tower]
        if answer.kind == "image_id":
            query = images[answer.asked]
        else:
            key = (answer.target, answer.asked)
            if key not in self._texts:
                found = self.encoders[tower].embed_texts([answer.asked], release)
                assert (found.image_tower, found.text_release) == answer.target
                self._texts[key] = found.vectors[0]
            query = self._texts[key]
        for image_id, score in answer.scores.items():
            true = float(query @ images[image_id])
            assert abs(true - score) < ALIKE, f"{answer}: {image_id} has {true}"
