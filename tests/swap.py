"""Two embedding services on one bucket of releases, an index and a gateway: all real but tiny."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cra.search.v1 import search_pb2 as pb
from cra.search.v1 import search_pb2_grpc as pb_grpc
from cra.services.gateway.paging import PageTokens
from cra.services.gateway.query_cache import QueryCache
from cra.services.gateway.search import SearchEngine
from cra.services.gateway.servicer import SearchServicer
from cra.shared.adapters.object_store import S3ObjectStore
from cra.shared.adapters.release_store import S3ReleaseStore
from cra.shared.adapters.remote_encoder import RemoteEncoder
from cra.shared.adapters.vector_store import MilvusVectorStore
from cra.shared.client import SearchClient
from cra.shared.domain import ImageRecord, IndexedImage, ObjectRef, SearchFilter, Vector, Version
from cra.shared.errors import UnavailableError
from cra.shared.ports import ImageProblem, Priority, ReleaseState
from cra.shared.releases import Release
from cra.shared.server import Server
from cra.shared.settings import Settings
from tests import servers
from tests.checkpoints import make_checkpoint
from tests.fakes import picture
from tests.releases import make_tower_release

QUERIES = ["红色的塔", "飞檐", "木构大殿", "雪中的石桥", "青瓦白墙"]
IMAGES = 24
EFFECTIVE_WITHIN = 5.0
"""Seconds from the choice of a release until every replica and the gateway follow."""


@dataclass
class World:
    """All that runs, and what the answers have to be."""

    settings: Settings
    store: S3ReleaseStore
    vectors: MilvusVectorStore
    replicas: list[RemoteEncoder]
    logs: list[Path]
    gateway: str
    base: str
    releases: list[Release]
    pictures: list[bytes]
    refs: list[ObjectRef]
    expected: dict[str, npt.NDArray[np.float32]]
    """By release: scores of queries and images."""

    @property
    def fingerprint(self) -> str:
        """The image tower that all of them share."""
        return self.replicas[0].models().image_tower.fingerprint

    def calls(self, method: str) -> int:
        """Return how many calls of a method both embedding services have ended."""
        return sum(log.read_text().count(f'EmbeddingService/{method}"') for log in self.logs)

    def active(self) -> set[str]:
        """Return what each replica says is active."""
        return {one.models().active_release.name for one in self.replicas}

    def check(self, query: int, response: pb.SearchResponse) -> str:
        """Check that an answer is that of the release it names; return that name."""
        expected = self.expected[response.text_release][query]
        scores = {hit.image_id: hit.score for hit in response.hits}
        assert len(scores) == IMAGES
        found = [scores[ref.image_id] for ref in self.refs]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        return response.text_release


def embed(encoder: RemoteEncoder, pictures: Sequence[bytes]) -> list[Vector]:
    """Return the pictures' vectors."""
    found: list[Vector] = []
    for result in encoder.embed_encoded_images(pictures, Priority.BULK).results:
        assert not isinstance(result, ImageProblem)
        found.append(result)
    return found


@contextlib.contextmanager
def embedding_service(folder: Path, settings: Settings) -> Iterator[tuple[str, Path]]:
    """Run an embedding service as a process; yield its target and its log."""
    (port,) = servers.free_ports(1)
    folder.mkdir()
    target = f"ipv4:127.0.0.1:{port}"
    env = {
        "CRA_EMBEDDING_PORT": str(port),
        "CRA_LOG_LEVEL": "DEBUG",
        "CRA_LOG_FORMAT": "json",
        "OMP_NUM_THREADS": "1",
        **environment(settings),
    }

    def ready() -> bool:
        encoder = RemoteEncoder(target, timeout=2)
        try:
            return bool(encoder.embed_texts(["塔"]).vectors)
        except UnavailableError:
            return False
        finally:
            encoder.close()

    command = [sys.executable, "-m", "cra.services.embedding"]
    with servers.running(command, folder, ready, env, patience=15.0):
        yield target, folder / "server.log"


def environment(settings: Settings) -> dict[str, str]:
    """Return the variables that give a process these settings."""
    return {
        "CRA_MODEL": settings.model,
        "CRA_DEVICE": "cpu",
        # Answers are compared with the reference's.
        "CRA_PRECISION": "fp32",
        "CRA_S3_ENDPOINT": settings.s3_endpoint,
        "CRA_S3_ACCESS_KEY": settings.s3_access_key,
        "CRA_S3_SECRET_KEY": settings.s3_secret_key.get_secret_value(),
        "CRA_RELEASES_BUCKET": settings.releases_bucket,
        "CRA_EMBEDDING_TARGET": settings.embedding_target,
        "CRA_GATEWAY_TARGET": settings.gateway_target,
    }


def fill(vectors: MilvusVectorStore, encoder: RemoteEncoder, pictures: list[bytes]) -> list[Any]:
    """Index pictures."""
    tower = encoder.models().image_tower
    vectors.ensure_collection(tower.fingerprint, tower.dimension)
    images = []
    for number, vector in enumerate(embed(encoder, pictures)):
        ref = ObjectRef("images", f"{number:02}.png")
        record = ImageRecord(ref, Version("etag", 1), "0" * 16, {}, 64, 48, 1000.0 + number)
        images.append(IndexedImage(record, vector))
    vectors.upsert(tower.fingerprint, images)
    probe = images[0].vector
    servers.wait_until(
        lambda: len(vectors.search(tower.fingerprint, probe, 99, SearchFilter())) == IMAGES,
        "all are searchable",
    )
    return images


def state_of(replica: RemoteEncoder, name: str) -> ReleaseState | None:
    """Return how far a replica is with a release."""
    return next((one.state for one in replica.models().releases if one.name == name), None)


@contextlib.contextmanager
def running(s3: Settings, milvus_uri: str, folder: Path) -> Iterator[World]:
    """Start all of it."""
    from cra.shared.model.checkpoints import find_model
    from cra.shared.model.text_tower import TextTower

    model = make_checkpoint(folder / "model", seed=7)
    others = [make_checkpoint(folder / f"other{n}", seed=7, text_seed=n) for n in (1, 2)]
    releases = [
        make_tower_release(folder / "releases", model, other, f"tuned{number}")
        for number, other in enumerate(others)
    ]
    settings = s3.model_copy(
        update={
            "model": str(model),
            "milvus_uri": milvus_uri,
            "releases_bucket": "releases-swap",
        }
    )
    store = S3ReleaseStore(settings)
    for release in releases:
        store.publish(release.folder)
    rng = np.random.default_rng(0)
    pictures = [
        picture((int(r), int(g), int(b)), (48 + int(r) % 32, 48))
        for r, g, b in rng.integers(0, 256, (IMAGES, 3))
    ]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(embedding_service(folder / f"embedding{n}", settings))
            for n in range(2)
        ]
        target = "ipv4:" + ",".join(one.removeprefix("ipv4:") for one, _ in started)
        replicas = [RemoteEncoder(one) for one, _ in started]
        encoder = RemoteEncoder(target)
        vectors = stack.enter_context(contextlib.closing(MilvusVectorStore(settings)))
        images = fill(vectors, replicas[0], pictures)
        # They are converted at low priority, which takes a while beside other tests.
        servers.wait_until(
            lambda: all(
                state_of(replica, release.name) is ReleaseState.LOADED
                for replica in replicas
                for release in releases
            ),
            "both have both releases",
            120,
        )
        engine = SearchEngine(
            encoder, vectors, S3ObjectStore(settings), PageTokens("key"), QueryCache(0)
        )
        servicer = SearchServicer(engine, 32)
        server = Server(
            Settings(max_calls=32, drain_seconds=5),
            "cra.search.v1.SearchService",
            0,
            lambda server: pb_grpc.add_SearchServiceServicer_to_server(servicer, server),
            engine.check,
        )
        server.start()
        matrix = np.stack([image.vector for image in images])
        base = TextTower(find_model(str(model)), "cpu")
        towers = {base.release: base, **{r.name: TextTower(r, "cpu") for r in releases}}
        gateway = f"ipv4:127.0.0.1:{server.port}"
        yield World(
            settings.model_copy(update={"embedding_target": target, "gateway_target": gateway}),
            store,
            vectors,
            replicas,
            [log for _, log in started],
            gateway,
            base.release,
            releases,
            pictures,
            [image.record.ref for image in images],
            {name: tower.encode(QUERIES)[0] @ matrix.T for name, tower in towers.items()},
        )
        server.stop()
        servicer.close()
        for one in (encoder, *replicas):
            one.close()


def await_change(world: World, name: str) -> float:
    """Return the seconds until all replicas and the gateway follow; fail after five."""
    began = time.monotonic()
    with SearchClient(world.gateway, timeout=20) as client:
        servers.wait_until(lambda: world.active() == {name}, "replicas follow", EFFECTIVE_WITHIN)
        servers.wait_until(
            lambda: client.search(QUERIES[0], top_k=1).text_release == name,
            "the gateway follows",
            EFFECTIVE_WITHIN - (time.monotonic() - began),
        )
    return time.monotonic() - began
