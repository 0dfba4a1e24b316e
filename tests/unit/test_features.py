"""Features of the frozen tower: each image is encoded once, and what is on disk is used."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from cra.services.training import features
from cra.services.training.data.dataset import Image
from cra.shared.model.image_tower import ImageTower
from cra.shared.model.pixels import BadImageError, prepare
from cra.shared.model.text_tower import TextTower
from tests.tuning import make_base, make_dataset

IMAGES = make_dataset([0]).images


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> ImageTower:
    """The image tower of a tiny model."""
    return ImageTower(make_base(tmp_path_factory.mktemp("base")), "cpu")


@pytest.fixture
def encoded(tower: ImageTower, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the tower encodes from here on."""
    sizes: list[int] = []
    encode = ImageTower.encode

    def counting(self: ImageTower, pixels: Any) -> Any:
        sizes.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(ImageTower, "encode", counting)
    return sizes


def test_an_image_is_encoded_once(tower: ImageTower, tmp_path: Path, encoded: list[int]) -> None:
    """A second run encodes nothing; one with more images only those; all get the same vectors."""
    first = features.load(IMAGES[:10], tower, tmp_path)
    assert sum(encoded) == 10
    again = features.load(IMAGES[9::-1], tower, tmp_path)
    assert sum(encoded) == 10
    np.testing.assert_array_equal(again[:, ::-1], first)
    features.load(IMAGES, tower, tmp_path)
    assert sum(encoded) == len(IMAGES)
    served = tower.encode(
        np.stack([prepare(image.read(), tower.preprocessing).pixels for image in IMAGES[:10]])
    )
    np.testing.assert_allclose(first[0], served, atol=1e-6)


def test_texts_are_encoded_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors of texts by a frozen text tower are kept too, by its release."""
    tower = TextTower(make_base(tmp_path_factory.mktemp("text")), "cpu")
    first = features.load_texts(["红塔", "白塔"], tower, tmp_path)
    np.testing.assert_allclose(first, tower.encode(["红塔", "白塔"])[0], atol=1e-6)
    monkeypatch.setattr(TextTower, "encode", lambda *_: pytest.fail("it is encoded again"))
    again = features.load_texts(["白塔", "红塔", "白塔"], tower, tmp_path)
    np.testing.assert_array_equal(again, first[[1, 0, 1]])


def test_equal_files_share_their_features(
    tower: ImageTower, tmp_path: Path, encoded: list[int]
) -> None:
    """The same bytes under two ids are one image."""
    twin = Image("twin", "other", (), IMAGES[0].read)
    found = features.load([IMAGES[0], twin], tower, tmp_path)
    assert sum(encoded) == 1
    np.testing.assert_array_equal(found[0, 0], found[0, 1])


@pytest.mark.parametrize("torn", [1, 31, 33, 100])
def test_a_torn_file_is_mended(
    tower: ImageTower, tmp_path: Path, encoded: list[int], torn: int
) -> None:
    """What an interrupted write left half is cut off and made again; the rest stays."""
    first = features.load(IMAGES[:6], tower, tmp_path)
    file = tmp_path / tower.image_tower / "view-0.bin"
    file.write_bytes(file.read_bytes()[:-torn])
    encoded.clear()
    np.testing.assert_allclose(features.load(IMAGES[:6], tower, tmp_path), first, atol=1e-6)
    assert encoded == [1]
    assert len(file.read_bytes()) == 6 * (36 + 4 * tower.dimension)


def test_a_flipped_bit_is_not_learnt_from(
    tower: ImageTower, tmp_path: Path, encoded: list[int]
) -> None:
    """A record whose checksum does not fit is made again."""
    first = features.load(IMAGES[:4], tower, tmp_path)
    file = tmp_path / tower.image_tower / "view-0.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    encoded.clear()
    np.testing.assert_allclose(features.load(IMAGES[:4], tower, tmp_path), first, atol=1e-6)
    assert encoded == [1]


def test_views_differ_and_are_always_the_same(tower: ImageTower, tmp_path: Path) -> None:
    """View 0 is the image as served; others are crops, the same in every run."""
    first = features.load(IMAGES[:5], tower, tmp_path / "one", views=3)
    again = features.load(IMAGES[:5], tower, tmp_path / "two", views=3)
    assert first.shape == (3, 5, tower.dimension)
    np.testing.assert_allclose(first, again, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(first, axis=-1), 1, atol=1e-5)
    assert np.abs(first[0] - first[1]).max() > 1e-3
    assert np.abs(first[1] - first[2]).max() > 1e-3


def test_a_bad_image_is_named(tower: ImageTower, tmp_path: Path) -> None:
    """An image that cannot be read or decoded ends it with its id, and what was done is kept."""
    bad = Image("halls/bad.jpg", "hall", (), lambda: b"no image")
    with pytest.raises(BadImageError, match=r"halls/bad\.jpg"):
        features.load([*IMAGES[:3], bad], tower, tmp_path)
    gone = Image("halls/gone.jpg", "hall", (), (tmp_path / "gone.jpg").read_bytes)
    with pytest.raises(BadImageError, match=r"halls/gone\.jpg"):
        features.load([*IMAGES[:3], gone], tower, tmp_path)
    with pytest.raises(ValueError, match="views is 0"):
        features.load(IMAGES[:1], tower, tmp_path, views=0)


def test_bad_images_are_noted_if_that_is_asked_for(tower: ImageTower, tmp_path: Path) -> None:
    """Told to go on, it notes bad images by place, and the others have their vectors."""
    bad = Image("halls/bad.jpg", "hall", (), lambda: b"no image")
    gone = Image("halls/gone.jpg", "hall", (), (tmp_path / "gone.jpg").read_bytes)
    noted: dict[int, BadImageError] = {}
    found = features.load([IMAGES[0], bad, gone, IMAGES[1]], tower, tmp_path, views=2, bad=noted)
    assert {place: error.reason for place, error in noted.items()} == {
        1: "not_an_image",
        2: "unreadable",
    }
    np.testing.assert_array_equal(
        found[:, [0, 3]], features.load(IMAGES[:2], tower, tmp_path, views=2)
    )


def test_a_turned_photograph_is_upright_in_every_view(tower: ImageTower, tmp_path: Path) -> None:
    """The camera's orientation holds for crops as it does for the image as served."""
    rng = np.random.default_rng(0)
    upright = PillowImage.fromarray(
        np.kron(rng.integers(0, 256, (6, 4, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    )

    def image(picture: PillowImage.Image, orientation: int) -> Image:
        exif = PillowImage.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", exif=exif)
        return Image(str(orientation), "g", (), buffer.getvalue)

    turned = upright.transpose(PillowImage.Transpose.ROTATE_90)
    found = features.load([image(upright, 1), image(turned, 6)], tower, tmp_path)
    np.testing.assert_allclose(found[0, 0], found[0, 1], atol=1e-5)
