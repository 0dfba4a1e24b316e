"""Recall through the live gateway, beside chance and ceiling."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from cra.search.v1 import search_pb2 as pb
from cra.services.training.buildings import oracle
from cra.services.training.buildings.attributes import Speech
from cra.services.training.buildings.dataset import Picture
from cra.shared.client import SearchClient

KS: Final = (1, 5, 10, 20)
_THREADS: Final = 8


@dataclass(frozen=True)
class Recall:
    """Recall at one k: shares from 0 to 1."""

    k: int
    measured: float
    chance: float
    ceiling: float


def choose_queries(
    pictures: Mapping[str, Picture], count: int, speech: Speech
) -> list[tuple[str, str]]:
    """Return keys and captions, spread evenly over the pictures that have one."""
    captions = {
        key: picture.plain if speech == "plain" else picture.professional
        for key, picture in pictures.items()
    }
    pairs = [(key, texts[-1]) for key, texts in captions.items() if texts]
    step = max(1, len(pairs) // count)
    return pairs[::step][:count]


def measure(
    client: SearchClient,
    pictures: Mapping[str, Picture],
    image_id: Callable[[str], str],
    queries: Sequence[tuple[str, str]],
    where: pb.Filter | None,
    input_size: int,
    done: Callable[[], None],
    text_release: str = "",
) -> list[Recall]:
    """Search for every query and count where its picture comes.

    Args:
        client: the gateway's.
        pictures: the gallery by key.
        image_id: names a key as the index does.
        queries: keys and captions.
        where: restricts the search to the gallery.
        input_size: side of the image tower's input, for the ceiling.
        done: called after each query.
        text_release: that encodes the queries; the active one if empty.
    """
    ranks: list[int | None] = []
    lock = threading.Lock()

    def one(query: tuple[str, str]) -> None:
        key, text = query
        hits = client.search(text, top_k=max(KS), where=where, text_release=text_release).hits
        wanted = image_id(key)
        rank = next((hit.rank for hit in hits if hit.image_id == wanted), None)
        with lock:
            ranks.append(rank)
            done()

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(one, queries):
            pass
    place = {key: index for index, key in enumerate(pictures)}
    gallery = list(pictures.values())
    asked = [(place[key], text) for key, text in queries]
    return [
        Recall(
            k,
            sum(rank is not None and rank <= k for rank in ranks) / len(ranks),
            min(1.0, k / len(gallery)),
            oracle.ceiling(gallery, asked, k, input_size),
        )
        for k in KS
    ]
