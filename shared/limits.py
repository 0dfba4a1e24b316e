"""What callers must know without what the services stand on: the client has no numpy."""

from typing import Final

MAX_IMAGE_BYTES: Final = 10 * 2**20
"""Bytes of an encoded picture in a call."""
