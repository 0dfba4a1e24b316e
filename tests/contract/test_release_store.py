"""The contract of the release store port, on a real S3 server."""

import io
import threading
from pathlib import Path

import pytest
from minio import Minio
from pydantic import SecretStr

from cra.shared.adapters.object_store import connect
from cra.shared.adapters.release_store import POINTER, S3ReleaseStore
from cra.shared.errors import (
    AbortedError,
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from cra.shared.releases import MANIFEST, WEIGHTS, Pointer, read_release
from cra.shared.settings import Settings
from tests.releases import make_release
from tests.servers import free_ports

TOWER = "f00dfeed00000001"


@pytest.fixture
def settings(releases_s3: Settings) -> Settings:
    """Settings with an empty bucket of releases."""
    return releases_s3


@pytest.fixture
def store(settings: Settings) -> S3ReleaseStore:
    """The store."""
    return S3ReleaseStore(settings)


@pytest.fixture
def client(settings: Settings) -> Minio:
    """The SDK itself, for doing harm."""
    return connect(settings)


def put(client: Minio, settings: Settings, key: str, content: bytes) -> None:
    """Put an object past the store."""
    client.put_object(settings.releases_bucket, key, io.BytesIO(content), len(content))


def test_what_is_published_comes_back(store: S3ReleaseStore, tmp_path: Path) -> None:
    """A release is listed, the newest first, and fetched with every byte of every file."""
    first = make_release(tmp_path / "made", TOWER, "first")
    second = make_release(tmp_path / "made", TOWER, "second", bytes(range(256)) * 30_000)
    store.publish(first.folder)
    assert store.publish(second.folder).name == second.name
    assert {one.name for one in store.list()} == {first.name, second.name}
    times = [one.published_at for one in store.list()]
    assert times == sorted(times, reverse=True)
    assert store.manifest(second.name) == second.manifest
    fetched = store.fetch(second.name, tmp_path / "fetched")
    assert fetched.folder == tmp_path / "fetched" / second.name
    assert fetched == read_release(fetched.folder)
    for file in second.folder.iterdir():
        assert (fetched.folder / file.name).read_bytes() == file.read_bytes()
    assert [one.name for one in fetched.folder.parent.iterdir()] == [second.name]


def test_publishing_again_is_no_error(store: S3ReleaseStore, tmp_path: Path) -> None:
    """The same release a second time changes nothing, not even its state."""
    release = make_release(tmp_path, TOWER)
    store.publish(release.folder)
    before = store.list()
    store.publish(release.folder)
    assert store.list() == before


def test_publishing_again_heals_a_damaged_copy(
    store: S3ReleaseStore, client: Minio, settings: Settings, tmp_path: Path
) -> None:
    """Bytes that were changed in the bucket are replaced by what the name vouches for."""
    release = make_release(tmp_path, TOWER)
    store.publish(release.folder)
    content = bytearray(release.weights.read_bytes())
    content[-1] ^= 1
    put(client, settings, f"{release.name}/{WEIGHTS}", bytes(content))
    with pytest.raises(FailedPreconditionError):
        store.fetch(release.name, tmp_path / "bad")
    store.publish(release.folder)
    assert store.fetch(release.name, tmp_path / "good").manifest == release.manifest


def test_a_folder_that_is_not_named_like_its_content_is_refused(
    store: S3ReleaseStore, tmp_path: Path
) -> None:
    """A renamed folder, or a manifest that was edited, is not published as something else."""
    release = make_release(tmp_path, TOWER)
    renamed = release.folder.rename(tmp_path / "other-12345678")
    with pytest.raises(FailedPreconditionError, match="renamed"):
        store.publish(renamed)
    edited = renamed.rename(release.folder)
    manifest = (edited / MANIFEST).read_text(encoding="utf-8")
    (edited / MANIFEST).write_text(manifest.replace('"base": "', '"base": "x'), encoding="utf-8")
    with pytest.raises(FailedPreconditionError, match="was changed"):
        store.publish(edited)


def test_a_torn_publication_is_not_listed(
    store: S3ReleaseStore, client: Minio, settings: Settings, tmp_path: Path
) -> None:
    """Without its manifest, which comes last, a release is none; published again, it is one."""
    release = make_release(tmp_path / "made", TOWER)
    put(client, settings, f"{release.name}/{WEIGHTS}", b"weig")
    put(client, settings, "not-a-release/release.json", b"{}")
    assert store.list() == []
    with pytest.raises(NotFoundError, match=release.name):
        store.fetch(release.name, tmp_path)
    store.publish(release.folder)
    assert [one.name for one in store.list()] == [release.name]
    store.fetch(release.name, tmp_path)


def test_only_whole_releases_are_published(store: S3ReleaseStore, tmp_path: Path) -> None:
    """A folder whose files are not what the manifest says is refused, and nothing is written."""
    release = make_release(tmp_path, TOWER)
    release.weights.write_bytes(b"weightS")
    with pytest.raises(FailedPreconditionError, match="was changed"):
        store.publish(release.folder)
    assert store.list() == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"weightS", "was changed"), (b"weig", "is torn"), (None, "is missing")],
    ids=["tampered", "torn", "gone"],
)
def test_what_was_changed_is_refused(
    content: bytes | None,
    problem: str,
    store: S3ReleaseStore,
    client: Minio,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """A file that is not what the manifest says refuses the release, and nothing stays behind."""
    release = make_release(tmp_path / "made", TOWER)
    store.publish(release.folder)
    (before,) = store.list()
    key = f"{release.name}/{WEIGHTS}"
    client.remove_object(settings.releases_bucket, key)
    if content is not None:
        put(client, settings, key, content)
    with pytest.raises(FailedPreconditionError, match=problem):
        store.fetch(release.name, tmp_path / "fetched")
    assert list((tmp_path / "fetched").iterdir()) == []
    assert store.list()[0].state != before.state


def test_a_release_is_what_its_name_says(
    store: S3ReleaseStore, client: Minio, settings: Settings, tmp_path: Path
) -> None:
    """A manifest under another name, or changed by one byte, is refused by its own content."""
    release = make_release(tmp_path / "made", TOWER)
    store.publish(release.folder)
    renamed = "other-00000000"
    for file in release.folder.iterdir():
        put(client, settings, f"{renamed}/{file.name}", file.read_bytes())
    with pytest.raises(FailedPreconditionError, match=release.name):
        store.fetch(renamed, tmp_path)
    changed = (release.folder / MANIFEST).read_bytes().replace(b"0.07", b"0.08")
    put(client, settings, f"{release.name}/{MANIFEST}", changed)
    with pytest.raises(FailedPreconditionError, match="changed"):
        store.manifest(release.name)
    with pytest.raises(FailedPreconditionError, match="another release has the name"):
        store.publish(release.folder)


@pytest.mark.parametrize("name", ["", "..", "../x-00000000", "/etc-00000000", "none-00000000"])
def test_unknown_names_are_not_found(store: S3ReleaseStore, tmp_path: Path, name: str) -> None:
    """What is no release's name is NOT_FOUND, and never a path."""
    store.publish(make_release(tmp_path / "made", TOWER).folder)
    with pytest.raises(NotFoundError):
        store.fetch(name, tmp_path / "fetched")
    with pytest.raises(NotFoundError):
        store.manifest(name)


def test_a_copy_that_is_there_is_checked_and_mended(store: S3ReleaseStore, tmp_path: Path) -> None:
    """Fetching over a whole copy reads it; over a damaged one, it replaces it."""
    release = make_release(tmp_path / "made", TOWER)
    store.publish(release.folder)
    fetched = store.fetch(release.name, tmp_path)
    before = fetched.weights.stat().st_mtime_ns
    assert store.fetch(release.name, tmp_path).weights.stat().st_mtime_ns == before
    fetched.weights.write_bytes(b"damaged")
    assert store.fetch(release.name, tmp_path).weights.read_bytes() == b"weights"


def test_the_pointer_goes_forth_and_back(store: S3ReleaseStore) -> None:
    """Each change is a version; a rollback goes to what was active before, two go back two."""
    first = store.activate("a-00000000", TOWER)
    assert (first.version, first.release) == (1, "a-00000000")
    assert store.activate("a-00000000", TOWER) == first
    second = store.activate("b-00000000", TOWER)
    assert store.pointer() == second
    assert [choice.release for choice in second.history] == ["", "a-00000000"]
    assert store.rollback().release == "a-00000000"
    back = store.rollback()
    assert (back.version, back.release, back.history) == (4, "", ())
    with pytest.raises(FailedPreconditionError, match="no release was active before"):
        store.rollback()
    assert store.pointer() == back


def test_nobody_has_chosen_yet(store: S3ReleaseStore, s3: Settings, tmp_path: Path) -> None:
    """Without a pointer its version is 0; without a bucket that is an error, and no empty list."""
    assert store.pointer() == Pointer()
    nowhere = S3ReleaseStore(s3.model_copy(update={"releases_bucket": "releases-elsewhere"}))
    for ask in (nowhere.list, nowhere.pointer, nowhere.rollback):
        with pytest.raises(NotFoundError):
            ask()
    release = nowhere.publish(make_release(tmp_path, TOWER).folder)
    assert [one.name for one in nowhere.list()] == [release.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"[]",
        b'{"format": 2}',
        b'{"version": -1}',
        b'{"surprise": 1}',
        b"x" * 2**21,
    ],
)
def test_a_bad_pointer_is_refused(
    content: bytes, store: S3ReleaseStore, client: Minio, settings: Settings
) -> None:
    """A pointer that cannot be read is never guessed at, nor written over."""
    put(client, settings, POINTER, content)
    for ask in (store.pointer, lambda: store.activate("a-00000000", TOWER), store.rollback):
        with pytest.raises(FailedPreconditionError, match=POINTER):
            ask()
    assert store.list() == []


def test_of_many_changes_at_once_one_wins(settings: Settings) -> None:
    """Whoever changed a pointer that had changed meanwhile is told so; no change is lost."""
    won: list[str] = []
    barrier = threading.Barrier(4)
    lost: list[AbortedError] = []

    def change(number: int) -> None:
        store = S3ReleaseStore(settings)
        for turn in range(5):
            name = f"r{number}.{turn}-00000000"
            barrier.wait(20)
            try:
                store.activate(name, TOWER)
                won.append(name)
            except AbortedError as error:
                lost.append(error)

    S3ReleaseStore(settings).activate("first-00000000", TOWER)
    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pointer = S3ReleaseStore(settings).pointer()
    names = [*(choice.release for choice in pointer.history), pointer.release]
    assert sorted(names) == sorted(["", "first-00000000", *won])
    assert pointer.version == len(won) + 1
    assert len(won) + len(lost) == 20
    assert lost


def test_outage_and_wrong_keys_are_errors(settings: Settings) -> None:
    """A store that does not answer is unavailable, and wrong credentials are said to be wrong."""
    (port,) = free_ports(1)
    down = S3ReleaseStore(settings.model_copy(update={"s3_endpoint": f"127.0.0.1:{port}"}))
    for ask in (down.list, down.pointer, down.rollback, lambda: down.activate("", TOWER)):
        with pytest.raises(UnavailableError):
            ask()
    wrong = settings.model_copy(update={"s3_secret_key": SecretStr("wrong")})
    with pytest.raises(PermissionDeniedError):
        S3ReleaseStore(wrong).list()


def test_a_release_that_nobody_holds_can_be_removed(
    store: S3ReleaseStore, client: Minio, settings: Settings, tmp_path: Path
) -> None:
    """All of it goes, and it can be published again; never what is active or rolled back to.

    Break: ask the pointer alone, and not its history, in `_is_held`.
    """
    first, second = (make_release(tmp_path / "made", TOWER, label) for label in ("one", "two"))
    for release in (first, second):
        store.publish(release.folder)
    store.activate(first.name, TOWER)
    for held in (first, second):
        store.activate(second.name, TOWER)
        with pytest.raises(FailedPreconditionError, match="activate others first"):
            store.remove(held.name)
    store.activate("", TOWER)
    store.remove(first.name)
    assert [one.name for one in store.list()] == [second.name]
    left = client.list_objects(settings.releases_bucket, prefix=first.name, recursive=True)
    assert list(left) == []
    with pytest.raises(NotFoundError):
        store.remove(first.name)
    with pytest.raises(NotFoundError):
        store.remove("../active.json")
    store.publish(first.folder)
    assert store.fetch(first.name, tmp_path / "fetched").manifest == first.manifest


def test_a_release_that_is_chosen_while_it_is_removed_stays(
    store: S3ReleaseStore, settings: Settings, tmp_path: Path
) -> None:
    """Who activates it in the moment between the look and the removal keeps it whole.

    Break: no second look at the pointer in `remove`.
    """
    release = make_release(tmp_path / "made", TOWER)
    store.publish(release.folder)

    class Hurried(S3ReleaseStore):
        looks = 0

        def pointer(self) -> Pointer:
            found = super().pointer()
            if self.looks == 0:
                store.activate(release.name, TOWER)
            self.looks += 1
            return found

    with pytest.raises(AbortedError, match="still there"):
        Hurried(settings).remove(release.name)
    assert store.fetch(release.name, tmp_path / "fetched").manifest == release.manifest
