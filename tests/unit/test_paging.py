"""Page tokens: they come back as they were made, or not at all."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra.services.gateway.paging import PageTokens, Position
from cra.shared.errors import InvalidArgumentError

TOKENS = PageTokens("key of the tests")
DIGEST = b"0123456789abcdef"
TOWER = "f00dfeed00000001"
HERE = Position(20, 0.123456789012345, "images/大殿/a+b c.jpg", "tiny-00000000")

_digests = st.binary(min_size=16, max_size=16)
_towers = st.text("0123456789abcdef", min_size=16, max_size=16)
_positions = st.builds(
    Position,
    rank=st.integers(1, 1000),
    score=st.floats(-1, 1),
    image_id=st.text(max_size=60),
    text_release=st.text(max_size=20),
)


def _refused(token: str, digest: bytes = DIGEST, tower: str = TOWER) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        TOKENS.read(token, digest, [tower])
    assert caught.value.field == "page_token"


@given(_digests, _towers, _positions)
def test_a_token_comes_back_as_it_was_made(digest: bytes, tower: str, position: Position) -> None:
    """Rank, exact score, image and release survive, in a token that is safe in a URL."""
    token = TOKENS.make(digest, tower, position)
    assert TOKENS.read(token, digest, ["another", tower]) == (tower, position)
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=")


@given(st.data(), _positions)
def test_any_other_text_is_refused(data: st.DataObject, position: Position) -> None:
    """A token with any character changed, added or left out is refused."""
    token = TOKENS.make(DIGEST, TOWER, position)
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(len(token), start + 3)))
    alphabet = st.sampled_from("ABab01-_+/=\n 字") | st.characters()
    other = token[:start] + data.draw(st.text(alphabet, max_size=3)) + token[end:]
    if other != token:
        _refused(other)


@given(st.data(), _positions)
def test_any_other_bytes_are_refused(data: st.DataObject, position: Position) -> None:
    """A token whose signature or content has any bit changed is refused."""
    raw = bytearray(base64.urlsafe_b64decode(TOKENS.make(DIGEST, TOWER, position)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    _refused(base64.urlsafe_b64encode(raw).decode())


@given(st.text(max_size=100) | st.binary(max_size=100).map(base64.urlsafe_b64encode).map(str))
def test_no_text_at_all_is_a_token(token: str) -> None:
    """What was never made is refused, whatever it holds, and raises nothing else."""
    _refused(token)


@pytest.mark.parametrize(
    "token", ["", "=", "====", "A", "\ud800", "字", "A" * 10_000_000], ids=lambda token: token[:4]
)
def test_hostile_texts(token: str) -> None:
    """Empty, broken, huge or half-Unicode texts are refused."""
    _refused(token)


def test_every_spelling_of_a_tokens_last_bits_but_one_is_refused() -> None:
    """Base64 leaves bits unused at the end, and knows two alphabets: only one spelling counts."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for length in range(3):  # all three paddings
        token = TOKENS.make(DIGEST, TOWER, Position(1, 0.5, "b/k" + "x" * length, "r"))
        bare = token.rstrip("=")
        for char in alphabet.replace(bare[-1], ""):
            _refused(bare[:-1] + char + token[len(bare) :])
        if bare != token:
            _refused(bare)
    tokens = (TOKENS.make(DIGEST, TOWER, Position(n, 0.5, "b/k", "r")) for n in range(100))
    token = next(token for token in tokens if "-" in token or "_" in token)
    _refused(token.replace("-", "+").replace("_", "/"))


@given(_digests, _towers)
def test_a_token_fits_one_query_and_one_collection(digest: bytes, tower: str) -> None:
    """With another query, or another image tower, a token is refused."""
    token = TOKENS.make(DIGEST, TOWER, HERE)
    if digest != DIGEST:
        _refused(token, digest=digest)
    if tower != TOWER:
        _refused(token, tower=tower)


def test_gateways_that_share_a_key_read_each_others_tokens() -> None:
    """The same key reads a token; another key, or one made up at the start, does not."""
    token = PageTokens("shared").make(DIGEST, TOWER, HERE)
    assert PageTokens("shared").read(token, DIGEST, [TOWER]) == (TOWER, HERE)
    for other in (PageTokens("other"), PageTokens(), PageTokens()):
        with pytest.raises(InvalidArgumentError):
            other.read(token, DIGEST, [TOWER])


def test_a_key_that_is_made_up_is_a_new_one_each_time() -> None:
    """Without a key set, each gateway makes its own, and reads its own tokens."""
    first, second = PageTokens(), PageTokens()
    token = first.make(DIGEST, TOWER, HERE)
    assert first.read(token, DIGEST, [TOWER]) == (TOWER, HERE)
    with pytest.raises(InvalidArgumentError):
        second.read(token, DIGEST, [TOWER])


def test_the_longest_ids_fit() -> None:
    """An image id of S3's greatest length comes back whole."""
    position = Position(1000, -1.0, "b" * 63 + "/" + "\U0001f3ef" * 256, "r" * 128)
    assert TOKENS.read(TOKENS.make(DIGEST, TOWER, position), DIGEST, [TOWER]) == (TOWER, position)
