"""Releases in the embedding service: a real bucket, real gRPC, a model of no weights."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from cra.services.embedding import releases as releases_module
from cra.shared.adapters.object_store import connect
from cra.shared.adapters.release_store import POINTER, S3ReleaseStore
from cra.shared.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from cra.shared.ports import Priority, ReleaseState
from cra.shared.releases import CARD, MANIFEST, WEIGHTS, Manifest, PublishedRelease, Release
from cra.shared.settings import Settings
from tests.embedding import RED, SOON, TOWER, Service, running, text_vector, wait_until
from tests.fakes import picture
from tests.releases import make_release
from tests.servers import free_ports

BASE = "colours-1"


def of_store(settings: Settings) -> dict[str, Any]:
    """Return the settings that reach a store."""
    names = ("s3_endpoint", "s3_access_key", "s3_secret_key", "releases_bucket")
    return {name: getattr(settings, name) for name in names}


@pytest.fixture
def store(releases_s3: Settings) -> S3ReleaseStore:
    """The store, empty."""
    return S3ReleaseStore(releases_s3)


@pytest.fixture
def service(releases_s3: Settings, store: S3ReleaseStore) -> Iterator[Service]:
    """A service that follows the store closely."""
    with running(**of_store(releases_s3), release_poll_seconds=0.2, max_releases=2) as service:
        yield service


@pytest.fixture
def publish(store: S3ReleaseStore, tmp_path: Path) -> Callable[..., Release]:
    """What publishes a release by its label."""

    def publish(label: str, image_tower: str = TOWER, **changes: Any) -> Release:
        return store.publish(make_release(tmp_path, image_tower, label, **changes).folder)

    return publish


def states(service: Service) -> dict[str, ReleaseState]:
    """Return how far the service is with each release."""
    return {one.name: one.state for one in service.encoder.models().releases}


def active(service: Service) -> str:
    """Return the active release."""
    return service.encoder.models().active_release.name


def wait_active(service: Service, name: str) -> None:
    """Return when a release is the active one."""
    wait_until(lambda: active(service) == name)


def wait_version(service: Service, version: int) -> None:
    """Return when the service follows a version of the pointer."""
    wait_until(lambda: service.encoder.models().pointer_version == version)


def wait_for(service: Service, name: str, state: ReleaseState | None) -> None:
    """Return when the service is so far with a release."""
    wait_until(lambda: states(service).get(name) is state)


def test_releases_answer_side_by_side(service: Service, publish: Callable[..., Release]) -> None:
    """Each loaded release answers by its name; the model's own does when none is named."""
    first, second = publish("first"), publish("second")
    for release in (BASE, first.name, second.name):
        wait_for(service, release, ReleaseState.LOADED)
        encoded = service.encoder.embed_texts(["红", "绿"], release)
        assert encoded.text_release == release
        expected = [text_vector("红", release), text_vector("绿", release)]
        np.testing.assert_array_equal(encoded.vectors, expected)
    models = service.encoder.models()
    assert (models.active_release.name, models.base_release) == (BASE, BASE)
    assert (models.pointer_version, models.releases_problem) == (0, "")
    assert service.encoder.embed_texts(["红"]).text_release == BASE


def test_activate_and_roll_back(
    service: Service, publish: Callable[..., Release], store: S3ReleaseStore
) -> None:
    """The pointer decides who answers unnamed queries, and whom images are said to go with."""
    first, second = publish("first"), publish("second")
    for chosen in (first.name, second.name):
        version = store.activate(chosen, TOWER).version
        wait_version(service, version)
        assert service.encoder.embed_texts(["红"]).text_release == chosen
        images = service.encoder.embed_encoded_images([picture(RED)], Priority.BULK)
        assert images.text_release == chosen
    for chosen in (first.name, BASE):
        store.rollback()
        wait_active(service, chosen)
    assert service.encoder.embed_texts(["红"]).text_release == BASE
    store.activate(BASE, TOWER)  # by its own name, too
    wait_version(service, 5)
    assert active(service) == BASE


def test_every_answer_is_of_the_release_it_names(
    service: Service, publish: Callable[..., Release], store: S3ReleaseStore
) -> None:
    """Swaps under a stream of calls: none fails, and each vector is of the release it names."""
    names = [publish("first").name, publish("second").name]
    for name in names:
        wait_for(service, name, ReleaseState.LOADED)
    stop = threading.Event()
    seen: set[str] = set()

    def ask(number: int) -> int:
        count = 0
        asked = ["", "", BASE, names[number % 2]][number % 4]
        while not stop.is_set():
            encoded = service.encoder.embed_texts(["红", "绿"], asked)
            assert encoded.text_release == asked or not asked
            expected = [text_vector(text, encoded.text_release) for text in ("红", "绿")]
            np.testing.assert_array_equal(encoded.vectors, expected)
            seen.add(encoded.text_release)
            count += 1
        return count

    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(ask, number) for number in range(6)]
        try:
            for turn in range(6):
                version = store.activate(names[turn % 2], TOWER).version
                wait_version(service, version)
        finally:
            stop.set()
        assert all(call.result(SOON) > 0 for call in calls)
    assert seen == {BASE, *names}


def test_a_call_in_line_keeps_its_release(
    service: Service, publish: Callable[..., Release], store: S3ReleaseStore
) -> None:
    """What was resolved before a swap is encoded with what it was resolved to, after the swap."""
    release = publish("first")
    wait_for(service, release.name, ReleaseState.LOADED)
    with service.towers.held() as wait_until_busy, ThreadPoolExecutor(2) as pool:
        first = pool.submit(service.encoder.embed_texts, ["红"])
        wait_until_busy()
        second = pool.submit(service.encoder.embed_texts, ["绿"])
        service.wait_in_line(texts=1)
        store.activate(release.name, TOWER)
        wait_active(service, release.name)
        service.towers._free.set()
        assert {first.result(SOON).text_release, second.result(SOON).text_release} == {BASE}


def test_a_name_that_is_new_is_looked_for(
    releases_s3: Settings, publish: Callable[..., Release]
) -> None:
    """A release that was just published answers to its name, without waiting for the next look."""
    with running(**of_store(releases_s3), release_poll_seconds=60) as service:
        release = publish("fresh")
        with ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(service.encoder.embed_texts, ["红"], release.name) for _ in range(8)
            ]
            assert {one.result(SOON).text_release for one in asked} == {release.name}
        assert service.towers.loads == ["fresh"]
        with pytest.raises(NotFoundError, match="nothing-00000000"):
            service.encoder.embed_texts(["红"], "nothing-00000000")


def test_many_who_ask_share_a_look(service: Service) -> None:
    """However many ask for unknown names at once, the bucket is looked at a few times only."""
    releases = service.releases
    before = releases._looks_begun
    with ThreadPoolExecutor(12) as pool:
        asked = [
            pool.submit(service.encoder.embed_texts, ["红"], f"none{number}-00000000")
            for number in range(12)
        ]
        for one in asked:
            assert isinstance(one.exception(SOON), NotFoundError)
    assert releases._looks_begun - before < 12


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_tower": "dead00000000beef"}, "made for the image tower dead00000000beef"),
        ({"dimension": 47}, "dimension 47"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any],
    reason: str,
    service: Service,
    publish: Callable[..., Release],
    store: S3ReleaseStore,
) -> None:
    """A release for another tower is refused with its reason, and the active one stays."""
    good, foreign = publish("good"), publish("foreign", **changes)
    store.activate(good.name, TOWER)
    wait_active(service, good.name)
    wait_for(service, foreign.name, ReleaseState.REFUSED)
    with pytest.raises(FailedPreconditionError, match=reason):
        service.encoder.embed_texts(["红"], foreign.name)
    store.activate(foreign.name, TOWER)
    wait_until(lambda: foreign.name in service.encoder.models().releases_problem)
    models = service.encoder.models()
    (info,) = [one for one in models.releases if one.name == foreign.name]
    assert reason in info.problem
    assert (models.active_release.name, models.pointer_version) == (good.name, 1)
    assert service.encoder.embed_texts(["红"]).text_release == good.name
    assert service.towers.loads == ["good"]


def test_what_is_torn_is_refused_until_it_is_mended(
    service: Service,
    publish: Callable[..., Release],
    store: S3ReleaseStore,
    releases_s3: Settings,
    tmp_path: Path,
) -> None:
    """A tampered release is refused and logged once; put right, it is loaded by itself."""
    client = connect(releases_s3)
    release = make_release(tmp_path, TOWER, "harmed")
    with structlog.testing.capture_logs() as log:
        release.weights.write_bytes(b"weightS")
        for file in (CARD, WEIGHTS, MANIFEST):
            key, source = f"{release.name}/{file}", release.folder / file
            client.fput_object(releases_s3.releases_bucket, key, str(source))
        wait_for(service, release.name, ReleaseState.REFUSED)
        before = service.releases._looks_done
        wait_until(lambda: service.releases._looks_done > before + 2)
    assert [line["release"] for line in log if line["event"] == "refused"] == [release.name]
    with pytest.raises(FailedPreconditionError, match="was changed"):
        service.encoder.embed_texts(["红"], release.name)
    client.remove_object(releases_s3.releases_bucket, f"{release.name}/{WEIGHTS}")
    release.weights.write_bytes(b"weights")
    store.publish(release.folder)
    wait_for(service, release.name, ReleaseState.LOADED)


@pytest.mark.parametrize("content", [b"garbage", b'{"format": 99}', b"{}"])
def test_a_bad_pointer_changes_nothing(
    content: bytes,
    service: Service,
    publish: Callable[..., Release],
    store: S3ReleaseStore,
    releases_s3: Settings,
) -> None:
    """A pointer that cannot be read, or is of another tower, leaves what is active; it shows."""
    good = publish("good")
    store.activate(good.name, TOWER)
    wait_active(service, good.name)
    if content == b"{}":
        store.activate("", "dead00000000beef")
    else:
        bucket = releases_s3.releases_bucket
        connect(releases_s3).put_object(bucket, POINTER, io.BytesIO(content), len(content))
    wait_until(lambda: "pointer" in service.encoder.models().releases_problem)
    assert service.encoder.embed_texts(["红"]).text_release == good.name
    assert service.health() == "SERVING"


def test_active_and_previous_stay_loaded(
    service: Service,
    publish: Callable[..., Release],
    store: S3ReleaseStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over the limit, the active one and the one before stay, then the newest; others go."""
    monkeypatch.setattr(releases_module, "GRACE", 0.0)
    old, older = publish("old"), publish("older")
    for release in (old, older):
        store.activate(release.name, TOWER)
        wait_active(service, release.name)
    newest = publish("newest")
    wait_for(service, newest.name, ReleaseState.UNLOADED)
    with pytest.raises(FailedPreconditionError, match="CRA_MAX_RELEASES"):
        service.encoder.embed_texts(["红"], newest.name)
    store.activate(newest.name, TOWER)
    wait_active(service, newest.name)
    wait_for(service, old.name, ReleaseState.UNLOADED)
    assert states(service)[older.name] is ReleaseState.LOADED
    wait_until(lambda: service.towers.releases == {BASE, older.name, newest.name})


def test_what_is_removed_goes_but_not_the_active_one(
    service: Service,
    publish: Callable[..., Release],
    store: S3ReleaseStore,
    releases_s3: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A release that is gone from the bucket is NOT_FOUND; the active one answers on."""
    monkeypatch.setattr(releases_module, "GRACE", 0.0)
    kept, gone = publish("kept"), publish("gone")
    store.activate(kept.name, TOWER)
    wait_active(service, kept.name)
    wait_for(service, gone.name, ReleaseState.LOADED)
    client, bucket = connect(releases_s3), releases_s3.releases_bucket
    for item in client.list_objects(bucket, recursive=True):
        if item.object_name != POINTER:
            client.remove_object(bucket, item.object_name)
    wait_for(service, gone.name, None)
    with pytest.raises(NotFoundError, match=gone.name):
        service.encoder.embed_texts(["红"], gone.name)
    assert service.encoder.embed_texts(["红"]).text_release == kept.name


def test_a_release_that_kills_its_process_is_refused(
    service: Service, publish: Callable[..., Release]
) -> None:
    """A poison release is not loaded again and again; queries go on."""
    service.towers.deadly.add("poison")
    release = publish("poison")
    wait_for(service, release.name, ReleaseState.REFUSED)
    assert service.towers.loads == ["poison"] * releases_module.MAX_DEATHS
    assert service.encoder.embed_texts(["红"]).text_release == BASE


@pytest.mark.parametrize(
    "fault",
    [UnavailableError("no space is left to convert it"), OSError(28, "No space left on device")],
    ids=["converting", "writing"],
)
def test_a_fault_that_passes_refuses_no_release(
    service: Service, publish: Callable[..., Release], fault: Exception
) -> None:
    """What is wrong with a disk or a process is tried again, ever more rarely, until it loads.

    Break: count whatever is unavailable as a death, as was done.
    """
    service.towers.bad["large"] = fault
    release = publish("large")
    tries = releases_module.MAX_DEATHS + 2
    wait_until(lambda: service.releases._postponements[release.name] == tries)
    assert service.towers.loads == ["large"] * tries
    assert service.releases._postponed[release.name] > time.monotonic() + 0.5
    del service.towers.bad["large"]
    wait_for(service, release.name, ReleaseState.LOADED)


def test_a_release_that_may_not_be_read_yet_is_refused_by_nobody(
    service: Service, publish: Callable[..., Release], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that lets the service list and not yet read is mended without a restart."""
    denied = threading.Event()

    def deny(_name: str) -> Manifest:
        denied.set()
        raise PermissionDeniedError("object store: AccessDenied")

    with monkeypatch.context() as patch:
        patch.setattr(service.releases._store, "manifest", deny)
        release = publish("denied")
        assert denied.wait(SOON)
    wait_for(service, release.name, ReleaseState.LOADED)


def test_a_lost_release_is_loaded_again(
    service: Service, publish: Callable[..., Release], store: S3ReleaseStore
) -> None:
    """What a replaced process did not bring back is noticed, and loaded anew."""
    release = publish("lost")
    store.activate(release.name, TOWER)
    wait_active(service, release.name)
    service.towers.releases.discard(release.name)
    wait_until(lambda: service.towers.loads == ["lost", "lost"])
    wait_active(service, release.name)
    assert service.encoder.embed_texts(["红"]).text_release == release.name


def test_without_a_store_the_model_s_own_tower_serves() -> None:
    """A store that is down keeps nobody from serving; it shows, and unknown names may be known."""
    (port,) = free_ports(1)
    with running(s3_endpoint=f"127.0.0.1:{port}") as service:
        assert service.encoder.embed_texts(["红"]).text_release == BASE
        wait_until(lambda: "does not answer" in service.encoder.models().releases_problem)
        with pytest.raises(UnavailableError):
            service.encoder.embed_texts(["红"], "some-00000000", timeout=SOON)
        with pytest.raises(NotFoundError):
            service.encoder.embed_texts(["红"], "no name of a release")


def test_a_start_waits_for_the_active_release(
    releases_s3: Settings, publish: Callable[..., Release], store: S3ReleaseStore
) -> None:
    """A replica that starts is ready once the release that is active everywhere is so here."""
    release = publish("first")
    store.activate(release.name, TOWER)
    with running(**of_store(releases_s3)) as service:
        assert service.encoder.embed_texts(["红"]).text_release == release.name


def test_a_start_answers_with_no_other_release_meanwhile(
    releases_s3: Settings, publish: Callable[..., Release], store: S3ReleaseStore
) -> None:
    """Until the active release is here, who names none is told to ask another replica.

    *Break:* without `_check` in `use` and `served`, the model's own release answers, and a gateway
    takes it for the active one.
    """
    release = publish("first")
    store.activate(release.name, TOWER)
    service = Service(Settings(**of_store(releases_s3)))
    service.server.start()
    try:
        for ask in (service.encoder.models, lambda: service.encoder.embed_texts(["红"])):
            with pytest.raises(UnavailableError, match="still being loaded"):
                ask()
        assert service.encoder.embed_texts(["红"], BASE).text_release == BASE
        service.releases.start()
        wait_until(lambda: service.health() == "SERVING")
        assert active(service) == release.name
    finally:
        service.close()


def test_a_start_waits_for_a_slow_bucket(
    releases_s3: Settings,
    publish: Callable[..., Release],
    store: S3ReleaseStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until the first look at the bucket is done, however long it takes, nothing is active.

    *Break:* follow the pointer in `_find_lost` before anything was read.
    """
    release = publish("first")
    store.activate(release.name, TOWER)
    monkeypatch.setattr(releases_module, "LOADS_APART", 0.01)
    service = Service(Settings(**of_store(releases_s3)))
    may_list, looks = threading.Event(), []
    listed, loaded = service.releases._store.list, service.towers.loaded_releases

    def slow() -> list[PublishedRelease]:
        assert may_list.wait(20)
        return listed()

    def counted() -> set[str]:
        looks.append(1)
        return loaded()

    monkeypatch.setattr(service.releases._store, "list", slow)
    monkeypatch.setattr(service.towers, "loaded_releases", counted)
    service.start()
    try:
        wait_until(lambda: len(looks) > 3)
        with pytest.raises(UnavailableError, match="still being loaded"):
            service.encoder.models()
        may_list.set()
        wait_until(lambda: service.health() == "SERVING")
        assert active(service) == release.name
    finally:
        may_list.set()
        service.close()
