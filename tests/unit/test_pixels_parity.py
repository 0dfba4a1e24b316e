"""Law 3 for pixels: from the file to the vector our image tower is cn_clip's, to 1e-4."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cn_clip.clip import image_transform
from PIL import Image

from cra.shared.model.checkpoints import find_model
from cra.shared.model.image_tower import ImageTower, normalize_pixels
from cra.shared.model.pixels import Preprocessing, prepare
from tests.checkpoints import Vision
from tests.photos import photograph
from tests.pictures import FILES, colourful, decode, encode, png_48, wide_samples
from tests.unit.reference import TOLERANCE, Reference, load_reference

TINY = Preprocessing(32)

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")

# What an image of each EXIF orientation goes through on its way to the viewer.
UPRIGHT: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    """It, in cn_clip's hands."""
    return load_reference(folder)


@pytest.fixture(scope="module")
def tower(folder: Path, reference: Reference) -> ImageTower:
    """It, in ours."""
    return ImageTower(find_model(str(folder)), "cpu", "fp32")


@pytest.fixture(scope="module")
def shipped() -> ImageTower:
    """The model that ships, which is trained."""
    return ImageTower(find_model("deploy/models/miniature"), "cpu", "fp32")


@pytest.fixture
def same(tower: ImageTower, reference: Reference) -> Callable[[bytes, Image.Image], None]:
    """Compare a file on our path with an image on cn_clip's: its tensor, then its vector."""

    def compare(encoded: bytes, expected: Image.Image) -> None:
        prepared = prepare(encoded, TINY)
        ours = normalize_pixels(torch.from_numpy(prepared.pixels[None]))
        theirs = reference.preprocess(expected)
        np.testing.assert_allclose(ours[0].numpy(), theirs.numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(
            tower.encode(prepared.pixels[None]),
            reference.encode_images([expected]),
            rtol=0,
            atol=TOLERANCE,
        )
        assert (prepared.width, prepared.height) == expected.size

    return compare


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_cn_clips_vector(name: str, same: Callable[..., None]) -> None:
    """Whatever its format, mode, palette or transparency: the vector is cn_clip's."""
    same(FILES[name], decode(FILES[name]))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_made_upright(kind: str, orientation: int, same: Callable[..., None]) -> None:
    """A file with an EXIF orientation has cn_clip's vector of the image as viewers show it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = colourful()
    if kind == "JPEG":
        encoded = encode(lying, kind, exif=exif)
        lying = decode(encode(lying, kind)).convert("RGB")
    else:
        encoded = encode(lying, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    same(encoded, Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](np.asarray(lying)))))


def test_the_eight_orientations_differ(tower: ImageTower) -> None:
    """The picture of these tests is told apart in all eight positions, so they prove a turn."""
    lying = np.asarray(colourful())
    turned = [
        prepare(encode(Image.fromarray(np.ascontiguousarray(turn(lying))), "PNG"), TINY).pixels
        for turn in UPRIGHT.values()
    ]
    likeness = tower.encode(np.stack(turned)) @ tower.encode(np.stack(turned)).T - np.eye(8)
    assert likeness.max() < 1 - 10 * TOLERANCE


def test_an_unknown_orientation_changes_nothing(same: Callable[..., None]) -> None:
    """An orientation out of 1 to 8 is nonsense: the pixels stay as they lie."""
    exif = Image.Exif()
    exif[0x0112] = 9
    same(encode(colourful(), "PNG", exif=exif), colourful())


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind: str, same: Callable[..., None]) -> None:
    """A 16-bit image has cn_clip's vector of the same image in 8 bits, not of a white one."""
    samples = wide_samples()
    eight = Image.fromarray(np.rint(samples / 257.0).astype(np.uint8))
    same(encode(Image.fromarray(samples), kind), eight)


def test_sixteen_bits_of_colour(same: Callable[..., None]) -> None:
    """A 16-bit RGB PNG is read as cn_clip reads it: Pillow brings it to 8 bits."""
    gray = wide_samples()
    encoded = png_48(np.stack([gray, gray[::-1], gray[:, ::-1]], axis=-1))
    assert decode(encoded).mode == "RGB"
    same(encoded, decode(encoded))


def test_sixteen_bits_can_be_turned(same: Callable[..., None]) -> None:
    """A 16-bit image with an EXIF orientation is scaled and made upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = wide_samples()
    eight = np.rint(np.rot90(samples, -1) / 257.0).astype(np.uint8)
    same(encode(Image.fromarray(samples), "PNG", exif=exif), Image.fromarray(eight))


@pytest.mark.parametrize(
    ("samples", "eight"),
    [
        pytest.param(
            np.array([[0.0, 0.5], [1.0, 0.25]], np.float32), [[0, 128], [255, 64]], id="to 1"
        ),
        pytest.param(
            np.array([[0.0, 100.4], [255, 7]], np.float32), [[0, 100], [255, 7]], id="to 255"
        ),
        pytest.param(
            np.array([[-9, 65535], [257, 0]], np.float32), [[0, 255], [1, 0]], id="to 65,535"
        ),
        pytest.param(
            np.array([[0, 131070], [65535, -5]], np.int32), [[0, 255], [128, 0]], id="32 bits"
        ),
    ],
)
def test_wide_samples_keep_their_range(
    samples: npt.NDArray[np.generic], eight: list[list[int]], same: Callable[..., None]
) -> None:
    """Float and 32-bit gray images come out with black as black and white as white."""
    encoded = encode(Image.fromarray(samples), "TIFF")
    same(encoded, Image.fromarray(np.array(eight, np.uint8)))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2), (700, 30), (32, 32)])
def test_any_shape_is_squashed(size: tuple[int, int], same: Callable[..., None]) -> None:
    """The whole image goes into the square, however long or small: nothing is cropped."""
    encoded = encode(colourful(*size), "PNG")
    same(encoded, decode(encoded))


@pytest.mark.parametrize("vision", ["vit", "resnet"])
def test_a_batch_has_cn_clips_vectors(vision: Vision, tmp_path: Path) -> None:
    """Both architectures agree with cn_clip on a batch, whose vectors are of unit length."""
    reference = load_reference(tmp_path, vision, seed=3)
    tower = ImageTower(find_model(str(tmp_path)), "cpu", "fp32")
    images = [colourful(seed=seed) for seed in range(5)]
    pixels = np.stack([prepare(encode(image, "PNG"), TINY).pixels for image in images])
    vectors = tower.encode(pixels)
    np.testing.assert_allclose(vectors, reference.encode_images(images), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (vectors @ vectors.T - np.eye(5)).max() < 0.99


def test_bf16_keeps_the_direction(folder: Path, tower: ImageTower) -> None:
    """Law 3 for faster arithmetic: a cosine of at least 0.999 with fp32."""
    pixels = np.stack([prepare(file, TINY).pixels for file in FILES.values()])
    fast = ImageTower(find_model(str(folder)), "cpu", "bf16").encode(pixels)
    assert (tower.encode(pixels) * fast).sum(axis=1).min() >= 0.999


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_large_jpeg_keeps_its_vector(orientation: int, shipped: ImageTower) -> None:
    """Decoded at a smaller size, a large JPEG keeps a cosine of 0.999, its size and its way up.

    The shipped model is trained, so that its vectors tell one picture from another: two of these
    are no more than 0.95 alike.
    """
    exif = Image.Exif()
    exif[0x0112] = orientation
    vectors = []
    for seed in range(3):
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(photograph(seed, (800, 600)))) as whole:
            whole.save(buffer, "JPEG", quality=90, exif=exif)
        quick = prepare(buffer.getvalue(), shipped.preprocessing)
        exact = prepare(buffer.getvalue(), shipped.preprocessing, exact=True)
        assert (quick.pixels != exact.pixels).any(), "it was not decoded at a smaller size"
        assert (quick.width, quick.height) == (exact.width, exact.height)
        one, other = shipped.encode(np.stack([quick.pixels, exact.pixels]))
        assert float(one @ other) >= 0.999
        vectors.append(one)
    likeness = np.stack(vectors) @ np.stack(vectors).T - np.eye(3)
    assert likeness.max() < 0.95


@pytest.mark.parametrize("size", [(800, 600), (1600, 1200)])
def test_exact_pixels_of_a_large_jpeg(size: tuple[int, int]) -> None:
    """Asked for, the pixels of a large JPEG are cn_clip's to the bit."""
    encoded = photograph(1, size)
    transform = image_transform(32)
    with Image.open(io.BytesIO(encoded)) as image:
        expected = transform(image)
    found = prepare(encoded, Preprocessing(32), exact=True).pixels
    normalized = normalize_pixels(torch.from_numpy(found)[None])[0]
    np.testing.assert_allclose(normalized.numpy(), expected.numpy(), atol=1e-6)
