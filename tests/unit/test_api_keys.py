"""API keys: the file, the command that writes it, the ring that follows it, and rates."""

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from cra.services.cli import group
from cra.services.gateway.keys import KeyRing, TokenBucket
from cra.shared.api_keys import ApiKey, change_keys, digest_of, new_key, read_keys
from cra.shared.errors import FailedPreconditionError, ResourceExhaustedError, UnauthenticatedError
from tests.servers import wait_until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where keys are kept."""
    return tmp_path / "keys.json"


def cra(file: Path, *arguments: str) -> Result:
    """Run `cra keys` on a file."""
    return CliRunner().invoke(group.cra, ["keys", "--file", str(file), *arguments])


def add(file: Path, name: str, *options: str) -> str:
    """Make a key and return it."""
    done = cra(file, "add", name, *options)
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


@pytest.fixture
def ring(file: Path) -> Iterator[KeyRing]:
    """A ring on a file without keys."""
    change_keys(file, lambda _: ())
    ring = KeyRing(file)
    yield ring
    ring.close()


def known(ring: KeyRing, key: str) -> bool:
    """Tell whether a key is in force."""
    try:
        ring.authenticate(f"Bearer {key}")
    except UnauthenticatedError:
        return False
    return True


def test_a_key_is_shown_once_and_kept_as_its_digest(file: Path) -> None:
    """The command prints the key alone on stdout; neither the file nor `list` holds it.

    Break: leave `exclude={"sha256"}` out of `list`.
    """
    key = add(file, "web", "--bucket", "images", "--bucket", "plans", "--rate", "2.5")
    assert key.startswith("cra_")
    assert len(key) == 4 + 43
    assert key not in file.read_text()
    (kept,) = read_keys(file)
    assert kept == ApiKey(name="web", sha256=digest_of(key), buckets=("images", "plans"), rate=2.5)
    assert kept.most_at_once == 3
    for options in ([], ["--json"]):
        told = cra(file, "list", *options).output
        assert "web" in told
        assert "images" in told
        assert key not in told
        assert digest_of(key) not in told


def test_a_file_of_keys_is_its_owner_s(file: Path) -> None:
    """A new file is readable by its owner alone; one that others may read stays as it is.

    Break: leave `fchmod` out of `_replace`.
    """
    add(file, "one")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    add(file, "two")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [one.name for one in file.parent.iterdir()] == [file.name]


def test_changes_at_once_do_not_undo_each_other(file: Path) -> None:
    """Twenty keys that are added at the same time are all there.

    Break: leave `flock` out of `change_keys`.
    """
    start = threading.Barrier(20)

    def one(number: int) -> None:
        start.wait()
        key = ApiKey(name=f"n{number}", sha256=digest_of(new_key()))
        change_keys(file, lambda there: (*there, key))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(file)} == {f"n{number}" for number in range(20)}


def test_the_help_needs_no_file() -> None:
    """How a command is called is asked before there is a file of keys; what it does needs one.

    Break: ask for the file in `keys`.
    """
    for command in ("add", "list", "revoke"):
        done = CliRunner().invoke(group.cra, ["keys", command, "--help"])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(group.cra, ["keys", "list"])
    assert done.exit_code == 2
    assert "give --file, or set CRA_API_KEYS_FILE" in done.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add", "two words"], "NAME: String should match pattern"),
        (["add", "x", "--bucket", "UPPER"], "--bucket: 'UPPER' is no bucket's name"),
        (["add", "x", "--rate", "0"], "--rate: Input should be greater than or equal to 0.001"),
        (["add", "x", "--rate", "nan"], "--rate: Input should be"),
        (["add", "x", "--rate", "1", "--burst", "0"], "--burst: Input should be greater"),
        (["add", "x", "--burst", "5"], "--burst has no effect without --rate"),
        (["add", "there"], "there is a key 'there' already; revoke it first"),
        (["revoke", "nobody"], "there is no key 'nobody' in"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], told: str, file: Path) -> None:
    """A bad value is refused by its option, and the file stays as it was.

    Break: `change_keys` before the check.
    """
    add(file, "there")
    before = file.read_bytes()
    done = cra(file, *arguments)
    assert done.exit_code != 0
    assert told in done.output
    assert "Traceback" not in done.output
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "Invalid JSON"),
        ("[]", "Input should be an object"),
        ("{}", "keys: Field required"),
        ('{"keys": [{"name": "a", "sha256": "cra_the-key-itself"}]}', "keys.0.sha256: String"),
        ('{"keys": [{"name": "a", "sha256": "%s", "bucket": "x"}]}' % ("0" * 64), "keys.0.bucket"),
        (
            json.dumps({"keys": [{"name": n, "sha256": d * 64} for n, d in ("a0", "a1")]}),
            "two keys have one name",
        ),
        (
            json.dumps({"keys": [{"name": n, "sha256": "0" * 64} for n in "ab"]}),
            "two keys have one sha256",
        ),
    ],
)
def test_a_bad_file_is_refused_at_the_start(content: str | None, told: str, file: Path) -> None:
    """What is missing, torn or misspelt never becomes an open door, and shows no key.

    Break: `error` itself in the message, or no `extra="forbid"` (a misspelt scope would be none).
    """
    if content is not None:
        file.write_text(content)
    with pytest.raises(FailedPreconditionError) as caught:
        KeyRing(file)
    assert str(file) in caught.value.message
    assert told in caught.value.message
    assert "the-key-itself" not in caught.value.message


def test_keys_come_and_go_without_a_restart(file: Path, ring: KeyRing) -> None:
    """A key that is added is let in, and one that is revoked is not, both within two seconds.

    Break: never call `_use` in `_watch`.
    """
    assert not known(ring, new_key())
    key = add(file, "web")
    wait_until(lambda: known(ring, key), "it is in", 2)
    assert cra(file, "revoke", "web").exit_code == 0
    wait_until(lambda: not known(ring, key), "it is out", 2)


def test_a_file_that_went_bad_changes_nothing(
    file: Path, ring: KeyRing, capfd: pytest.CaptureFixture[str]
) -> None:
    """A torn or lost file keeps the keys of before, with an error in the log; a good one counts.

    Break: let `_watch` die of the error, or use no keys then.
    """
    key = add(file, "web")
    wait_until(lambda: known(ring, key), "it is in", 2)
    told = ""

    def complained() -> bool:
        nonlocal told
        told += "".join(capfd.readouterr())
        return "the API keys of before stay in force" in told

    for spoil in (lambda: file.write_text("{"), file.unlink):
        told = ""
        spoil()
        wait_until(complained, "the log tells", 3)
        assert known(ring, key)
    other = add(file, "other")
    wait_until(lambda: known(ring, other), "the next good file counts", 2)
    assert not known(ring, key)


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "{key}", "Basic {key}", "Bearer {key} ", "Bearer  {key}",
     "Bearer {key}x", "Bearer {half}", "Bearer {digest}", "Bearer \udc80", "Bearer 钥"],
)  # fmt: skip
def test_anything_else_is_refused_alike(header: str, file: Path) -> None:
    """Every header but the right one gets the same words, which do not say what was wrong.

    Break: another message for a missing key, or compare what the file says with what is given.
    """
    key = add(file, "web")
    ring = KeyRing(file)
    assert known(ring, key)
    given = header.format(key=key, half=key[:20], digest=digest_of(key))
    with pytest.raises(UnauthenticatedError) as caught:
        ring.authenticate(given)
    ring.close()
    assert caught.value.message == "a valid API key is needed"


def test_a_rate_is_kept_over_changes_of_other_keys(file: Path, ring: KeyRing) -> None:
    """A new key in the file gives nobody a fresh burst; a new rate of one's own does.

    Break: `TokenBucket` anew for each key in `_use`.
    """
    key = add(file, "web", "--rate", "0.01", "--burst", "2")
    wait_until(lambda: known(ring, key), "it is in", 2)
    for _ in range(2):
        assert ring.admit(f"Bearer {key}").name == "web"
    with pytest.raises(ResourceExhaustedError) as caught:
        ring.admit(f"Bearer {key}")
    assert 90 < caught.value.retry_after <= 100
    other = add(file, "other")
    wait_until(lambda: known(ring, other), "the file is read", 2)
    for _ in range(50):
        ring.admit(f"Bearer {other}")
    with pytest.raises(ResourceExhaustedError):
        ring.admit(f"Bearer {key}")
    change_keys(file, lambda there: [one.model_copy(update={"burst": 3}) for one in there])
    wait_until(lambda: ring.authenticate(f"Bearer {key}").burst == 3, "the file is read", 2)
    ring.admit(f"Bearer {key}")


@given(
    st.floats(0.001, 1e4),
    st.integers(1, 50),
    st.lists(st.floats(0, 20) | st.just(0.0), max_size=80),
)
def test_a_bucket_never_gives_more_than_its_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    """Over any time, at most burst + rate * time; and a wait it names is enough, and no longer.

    Break: forget `min(self.burst, …)`, return a fixed second, or take a token below one.
    """
    now = 0.0
    bucket = TokenBucket(rate, burst, clock=lambda: now)
    taken: list[float] = []
    for pause in pauses:
        now += pause / rate
        wait = bucket.take()
        if wait == 0:
            taken.append(now)
            continue
        assert wait <= 1 / rate + 0.001
        if wait > 0.0015:
            now += wait - 0.0015
            assert bucket.take() > 0
            now += 0.0015
        else:
            now += wait
        assert bucket.take() == 0
        taken.append(now)
    for number, first in enumerate(taken):
        for count, last in enumerate(taken[number:], start=1):
            assert count <= burst + rate * (last - first) + 1 + 1e-3
