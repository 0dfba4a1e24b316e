"""Every kind of bad or odd file that the catalogue has, decoded as the workers do it."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from tests.odd_objects import ODD_OBJECTS, OddObject
from tests.odd_pixels import CONTENTS, Decoded, distance, turned
from tests.servers import ROOT

MEMORY_OF_ONE = 2**30
"""Bytes that the largest allowed image may take: 89 megapixels of four samples, held twice."""

MEMORY_OF_REFUSED = 64 * 2**20
"""Bytes that a file may take that is refused."""


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoded]:
    """What became of each kind, in a process of its own."""
    file = tmp_path_factory.mktemp("odd") / "decoded"
    code = "from tests.odd_pixels import main; main()"
    command = [sys.executable, "-c", code, str(file)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Decoded] = pickle.loads(Path(file).read_bytes())  # noqa: S301 - our own
    return found


def test_the_catalogue_is_long_enough() -> None:
    """Over 60 kinds are odd by their content alone, beside those of names and metadata."""
    assert len(CONTENTS) >= 100
    assert len(ODD_OBJECTS) >= 150


@pytest.mark.parametrize("odd", CONTENTS, ids=lambda odd: odd.kind)
def test_a_file_is_upright_and_right_or_refused(
    odd: OddObject, decoded: dict[str, Decoded]
) -> None:
    """A good odd file gives its picture, upright and in its own size; a bad one says why.

    Fails when `_turn` returns None, when a HEIF's `original_orientation` is applied too, when a
    draft is made of what is no JPEG, and when `_check_parts` or `_check_tiles` is left out.
    """
    found = decoded[odd.kind]
    assert found.got == odd.expected
    if odd.reason:
        assert len(found.message.split()) >= 3, "a sentence, for people"
        assert found.pixels is None
    elif odd.picture is not None:
        assert found.pixels is not None
        near = distance(found.pixels, odd.picture)
        assert near < 6.5
        colours = odd.picture.convert("RGB").getcolors(16)
        if colours is None or len(colours) > 2:
            assert min(distance(found.pixels, one) for one in turned(odd.picture)) > 3 * near


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_takes_much_memory(decoded: dict[str, Decoded]) -> None:
    """No file takes over 1 GiB, and none that is refused over 64 MiB, whatever it unpacks to.

    Fails without the limit of a TIFF's tiles (268 MB for a file of 261 KB), and with MAX_PIXELS
    four times as large.
    """
    much = {
        odd.kind: decoded[odd.kind].growth
        for odd in CONTENTS
        if decoded[odd.kind].growth > (MEMORY_OF_REFUSED if odd.reason else MEMORY_OF_ONE)
    }
    assert not much
    assert max(one.growth for one in decoded.values()) > 300 * 2**20, "the measure sees nothing"
