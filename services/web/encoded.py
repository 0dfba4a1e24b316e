"""Pictures in JSON: Base64, taken strictly."""

import binascii
from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

PICTURE = "a picture as encoded bytes (JPEG, PNG, WebP, …) in base64, at most 10 MiB before it"


def _decoded(text: bytes) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise PydanticCustomError(
            "base64",
            "is no Base64 of RFC 4648, section 4: A-Z, a-z, 0-9, + and /, filled up with =; line "
            "breaks and the alphabet for URLs are not taken",
        ) from error


Picture = Annotated[
    bytes,
    AfterValidator(_decoded),  # pydantic's own Base64 drops whatever is none
    WithJsonSchema({"type": "string", "format": "base64"}),
]
