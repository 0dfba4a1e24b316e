"""The calls of the embedding service: what they answer, and what they refuse."""

from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import message
from google.rpc import error_details_pb2

from cra.embedding.v1 import embedding_pb2 as pb
from cra.shared import errors, rpc
from cra.shared.limits import MAX_IMAGE_BYTES
from cra.shared.model.pixels import Preprocessing, prepare
from cra.shared.ports import ImageProblem, Priority
from tests.embedding import (
    BLUE,
    GOOD,
    GREEN,
    NAN,
    PREPARED,
    RED,
    SOON,
    TOWER,
    Service,
    details_of,
    running,
    text_vector,
)
from tests.fakes import SIDE, picture, vector_of

_PIXELS = bytes(SIDE * SIDE * 3)


def test_texts(service: Service) -> None:
    """Each text gets its own unit vector, in order, with release, tower and what was cut."""
    texts = ["红色的门", "蓝色的塔" * 20, "绿琉璃"]
    encoded = service.encoder.embed_texts(texts, "colours-1")
    np.testing.assert_array_equal(encoded.vectors, [text_vector(text) for text in texts])
    assert encoded.truncated == [False, True, False]
    assert (encoded.text_release, encoded.image_tower) == ("colours-1", TOWER)
    assert encoded.timing.queue >= 0
    assert encoded.timing.encode >= 0


def test_images_and_prepared_pixels_are_one_path(service: Service) -> None:
    """A file, and the pixels that a worker prepared from it, get the same vector."""
    files = [picture(RED), picture(BLUE, kind="JPEG")]
    pixels = [prepare(file, PREPARED).pixels.tobytes() for file in files]
    encoded = service.encoder.embed_encoded_images(files, Priority.INTERACTIVE)
    prepared = service.encoder.embed_pixels(pixels, PREPARED.fingerprint, Priority.BULK)
    np.testing.assert_array_equal(encoded.results, prepared.results)
    assert encoded.image_tower == prepared.image_tower == TOWER
    assert encoded.text_release == "colours-1"


def test_a_text_finds_its_picture(service: Service) -> None:
    """Both towers speak of one space: the word for red is nearest to the red picture."""
    texts = service.encoder.embed_texts(["红", "绿", "蓝"]).vectors
    files = [picture(colour) for colour in (RED, GREEN, BLUE)]
    images = service.encoder.embed_encoded_images(files, Priority.INTERACTIVE).results
    assert (np.array(texts) @ np.array(images).T).argmax(axis=1).tolist() == [0, 1, 2]


def test_models(service: Service) -> None:
    """ListModels says all that a worker needs to prepare pixels, and which release is active."""
    models = service.encoder.models()
    assert models.image_tower.fingerprint == TOWER
    assert models.image_tower.preprocessing == PREPARED.fingerprint
    assert (models.image_tower.input_size, models.image_tower.dimension) == (SIDE, SIDE * SIDE * 3)
    assert models.active_release.name == "colours-1"
    assert models.active_release.image_tower == TOWER
    assert (models.device, models.precision, models.runtime) == ("cpu", "fp32", "fake")


def test_one_bad_image_never_fails_its_neighbours(service: Service) -> None:
    """Bad files are answered one by one with their reasons, the good ones with their vectors."""
    good = picture(GREEN)
    images = [good, b"", b"no image", picture(RED, (300, 300), "JPEG")[:-200], good]
    results = service.encoder.embed_encoded_images(images, Priority.BULK).results
    reasons = [one.reason for one in results if isinstance(one, ImageProblem)]
    assert reasons == ["empty", "not_an_image", "truncated"]
    expected = vector_of(prepare(good, PREPARED).pixels)
    np.testing.assert_array_equal([results[0], results[4]], [expected, expected])


def test_bad_images_alone_are_answered(service: Service) -> None:
    """A call in which no image is good is answered all the same, without the tower."""
    before = len(service.towers.batches)
    results = service.encoder.embed_encoded_images([b"", b"x"], Priority.BULK).results
    assert all(isinstance(one, ImageProblem) for one in results)
    assert len(service.towers.batches) == before


@pytest.mark.parametrize(
    ("request_message", "field", "limit"),
    [
        (pb.EmbedTextsRequest(), "texts", "1 to 256"),
        (pb.EmbedTextsRequest(texts=["门"] * 257), "texts", "1 to 256"),
        (pb.EmbedTextsRequest(texts=["门", " "]), "texts[1]", "at least one visible character"),
        (pb.EmbedTextsRequest(texts=["门" * 1001]), "texts[0]", "at most 1000"),
        (pb.EmbedImagesRequest(), "items", "1 to 64"),
        (pb.EmbedImagesRequest(items=[GOOD] * 65), "items", "1 to 64"),
        (pb.EmbedImagesRequest(items=[GOOD, pb.ImageItem()]), "items[1]", "neither encoded"),
        (
            pb.EmbedImagesRequest(items=[pb.ImageItem(encoded=bytes(MAX_IMAGE_BYTES + 1))]),
            "items[0].encoded",
            "at most 10485760",
        ),
        (
            pb.EmbedImagesRequest(
                items=[
                    pb.ImageItem(
                        pixels=pb.Pixels(data=_PIXELS[1:], preprocessing=PREPARED.fingerprint)
                    )
                ]
            ),
            "items[0].pixels.data",
            "4 x 4 x 3",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_field_out_of_its_limits(
    request_message: message.Message, field: str, limit: str, service: Service
) -> None:
    """INVALID_ARGUMENT names the field and its limit, in the message and in BadRequest."""
    texts = isinstance(request_message, pb.EmbedTextsRequest)
    method: Any = service.stub.EmbedTexts if texts else service.stub.EmbedImages
    with pytest.raises(grpc.RpcError) as caught:
        method(request_message, timeout=SOON)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = details_of(caught.value)
    bad = details["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert bad.field_violations[0].field == field
    assert limit in bad.field_violations[0].description
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "cra")
    raised = rpc.from_rpc_error(caught.value, "the server")
    assert isinstance(raised, errors.InvalidArgumentError)
    assert raised.field == field


def test_the_limits_themselves_are_allowed(service: Service) -> None:
    """256 texts and 64 images go through in one call each, in batches of the tower's size."""
    assert len(service.encoder.embed_texts(["门"] * 64).vectors) == 64
    with running(max_queue=256) as own:
        assert len(own.encoder.embed_texts(["门" * 1000] * 256).vectors) == 256
        images = own.encoder.embed_encoded_images([picture(RED)] * 64, Priority.BULK)
        assert len(images.results) == 64
        assert max(map(len, own.towers.batches)) == 4


def test_pixels_for_another_tower(service: Service) -> None:
    """Pixels of another preprocessing are FAILED_PRECONDITION, naming the item and the remedy."""
    with pytest.raises(errors.FailedPreconditionError, match=r"items\[0\].*ListModels"):
        service.encoder.embed_pixels([_PIXELS], Preprocessing(5).fingerprint, Priority.BULK)
    with pytest.raises(errors.FailedPreconditionError):
        service.encoder.embed_pixels([_PIXELS], "", Priority.BULK)


@pytest.mark.parametrize(
    "release",
    [
        pytest.param("colours-2", id="another"),
        pytest.param("别的", id="Chinese"),
        pytest.param("\n\0\r", id="control characters"),
        pytest.param("x" * 100_000, id="long"),
        pytest.param("门" * 100_000, id="long and Chinese"),
    ],
)
def test_an_unknown_release(release: str, service: Service) -> None:
    """A release that is not loaded is NOT_FOUND, whatever its name holds and however long."""
    with pytest.raises(errors.NotFoundError, match="there is no text release"):
        service.encoder.embed_texts(["红"], release)


def test_what_is_no_number_is_passed_on_to_nobody(service: Service) -> None:
    """A text that encodes to NaN is INTERNAL by its name; an image has a problem of its own.

    Neighbours in the call, or in the batch, have their vectors. Broken on purpose: without
    `_check_finite` and `_image_result`'s look, the vectors go out as they are.
    """
    with pytest.raises(errors.CraError, match=r"INTERNAL: texts\[1\]: .* no number"):
        service.encoder.embed_texts(["红", NAN])
    assert service.encoder.embed_texts(["红"]).vectors
    images = [picture(RED), picture((1, 1, 1)), picture(BLUE)]
    good, bad, other = service.encoder.embed_encoded_images(images, Priority.BULK).results
    assert isinstance(bad, ImageProblem)
    assert (bad.reason, "no number" in bad.message) == ("no_number", True)
    assert not isinstance(good, ImageProblem)
    assert not isinstance(other, ImageProblem)
    assert np.isfinite([good, other]).all()
