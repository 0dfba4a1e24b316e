"""Limits that several parts must hold alike; the client, which has no numpy, is one of them."""

from typing import Final

MAX_IMAGE_BYTES: Final = 10 * 2**20
"""Bytes of an encoded picture in a call."""

MAX_METADATA_ENTRIES: Final = 128
"""Of an image's metadata, all of which can be filtered by."""

HEADER: Final = "[!-~]*"
"""What a header can hold of a key or token, as a regular expression: visible ASCII characters."""
