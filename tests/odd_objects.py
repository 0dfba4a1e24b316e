"""Objects of a bucket that are bad, or odd: what each is, and what is to become of it.

The tests make all of them; `docs/bad-inputs.md` is the table (`make bad-inputs`).
"""

import base64
import functools
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms

from cra.shared.model.pixels import MAX_PIXELS, MAX_SCANS, MAX_SEGMENTS, MAX_SIDE
from tests.pictures import alpha, chunk, colourful, encode, png, png_48

PICTURE: Final = colourful(120, 80, seed=5)
"""What the good ones show, upright."""
GRAY: Final = PICTURE.convert("L")

Turn = Image.Transpose
LYING: Final[Mapping[int, Turn | None]] = {
    1: None,
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_90,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_270,
}
"""How pixels lie in a file of each EXIF orientation; their opposites make them upright."""


@dataclass(frozen=True)
class OddObject:
    """One object, and what is to become of it."""

    kind: str
    """What it is, for people; unique."""
    key: str
    content: Callable[[], bytes]
    """Makes the file."""
    reason: str = ""
    """Why it is on the failure list; empty: it is indexed."""
    picture: Image.Image | None = None
    """What is seen, upright; None: what a damaged file shows, whatever that is."""
    size: tuple[int, int] = PICTURE.size
    """Width and height that the index holds."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent along, as they are."""

    @property
    def expected(self) -> str:
        """What is to become of it, for the table."""
        return self.reason or f"indexed, {self.size[0]} x {self.size[1]}"


def _good(
    kind: str,
    content: Callable[[], bytes],
    picture: Image.Image | None = PICTURE,
    *,
    key: str = "",
    size: tuple[int, int] | None = None,
    **more: Any,
) -> OddObject:
    shown = size or (picture or PICTURE).size
    return OddObject(kind, key or f"odd/{kind}.jpg", content, "", picture, shown, **more)


def _bad(
    kind: str, content: Callable[[], bytes], reason: str, *, key: str = "", **more: Any
) -> OddObject:
    return OddObject(kind, key or f"odd/{kind}.jpg", content, reason, **more)


def plain() -> bytes:
    """Return the picture as anybody would send it."""
    return encode(PICTURE, "JPEG", quality=95)


# What happens to files on their way.

_WAYS: Final[dict[str, Callable[[], bytes]]] = {
    "JPEG": plain,
    "PNG": lambda: encode(PICTURE, "PNG"),
    "WebP": lambda: encode(PICTURE, "WEBP", quality=95),
    "TIFF": lambda: encode(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    "AVIF": lambda: encode(PICTURE, "AVIF", quality=90),
    "HEIC": lambda: encode(PICTURE, "HEIF", quality=90),
    "GIF": lambda: encode(PICTURE.quantize(64), "GIF"),
    "BMP": lambda: encode(PICTURE, "BMP"),
    "JPEG 2000": lambda: encode(PICTURE, "JPEG2000"),
    "PPM": lambda: encode(PICTURE, "PPM"),
}


def _cut(content: bytes, share: float = 0.5) -> bytes:
    return content[: int(len(content) * share)]


def _flipped(content: bytes, places: int, start: float = 0.0, seed: int = 1) -> bytes:
    """Flip a bit in each of some places from a share of the file on."""
    damaged = bytearray(content)
    rng = np.random.default_rng(seed)
    for place in rng.integers(int(len(content) * start), len(content), places).tolist():
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


@functools.cache
def _zeros(count: int) -> bytes:
    """Return a zlib stream of so many zeros, made without holding them."""
    packer = zlib.compressobj(1)
    block = bytes(2**20)
    parts = [packer.compress(block) for _ in range(count // 2**20)]
    return b"".join([*parts, packer.compress(bytes(count % 2**20)), packer.flush()])


def _text(content: str) -> Callable[[], bytes]:
    return content.encode


# Containers, piece by piece.


def _with_chunk(kind: bytes, data: bytes, times: int = 1) -> bytes:
    """Return the picture as PNG with a chunk more, before its pixels."""
    plain_png = encode(PICTURE, "PNG")
    return plain_png[:33] + chunk(kind, data) * times + plain_png[33:]


def _with_segment(marker: int, data: bytes, times: int = 1) -> bytes:
    """Return the picture as JPEG with a segment more, at its beginning."""
    segment = struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
    content = plain()
    return content[:2] + segment * times + content[2:]


def _tiff(width: int, height: int, tags: Mapping[int, int], data: bytes) -> bytes:
    """Return a gray TIFF of 8 bits, packed by deflate; `tags` come beside its own."""
    base = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1}
    fields = {**base, **tags}
    start = 8 + 2 + 12 * (len(fields) + 2) + 4
    tiled = 322 in fields
    fields |= {324 if tiled else 273: start, 325 if tiled else 279: len(data)}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, fields[tag]) for tag in sorted(fields))
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + rows + bytes(4) + data


def _gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """Return a GIF whose frame may be larger than its screen."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00"
    return head + image + b";"


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n")
    return buffer.getvalue()


def _pdf() -> bytes:
    image = plain()
    head = b"%PDF-1.4\n1 0 obj <</Type /XObject /Subtype /Image /Filter /DCTDecode /Length "
    return head + f"{len(image)}>>\nstream\n".encode() + image + b"\nendstream endobj\n%%EOF"


# Images.


def _exif(orientation: object, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in more.items():
        exif[int(tag.removeprefix("tag_"))] = value
    return exif.tobytes()


def _lying(kind: str, orientation: int, **options: Any) -> bytes:
    """Return the picture with its pixels turned, and the EXIF orientation that sets them right."""
    turn = LYING[orientation]
    image = PICTURE if turn is None else PICTURE.transpose(turn)
    return encode(image, kind, exif=_exif(orientation), **options)


def _heic_without_exif() -> bytes:
    """Return a HEIC whose orientation stands in its `irot` alone; EXIF says that it is upright."""
    exif = _exif(6)
    content = encode(PICTURE.transpose(Turn.ROTATE_90), "HEIF", exif=exif, quality=95)
    return _patched(content, exif[6:], _exif(1)[6:])


def _heic_of_exif_alone() -> bytes:
    """Return a HEIC whose EXIF data says 6, while the file itself says nothing."""
    exif = _exif(1)
    return _patched(encode(PICTURE, "HEIF", exif=exif, quality=95), exif[6:], _exif(6)[6:])


def _avif_without_exif() -> bytes:
    return _lying("AVIF", 8, quality=95)


def _translucent() -> Image.Image:
    image = PICTURE.copy()
    image.putalpha(alpha(*PICTURE.size).point(lambda value: 128 + value // 2))
    return image


def _gray_alpha() -> Image.Image:
    image = GRAY.copy()
    image.putalpha(alpha(*PICTURE.size).point(lambda value: 128 + value // 2))
    return image


def _others(mode: str = "RGB") -> list[Image.Image]:
    """Return frames and pages that come after the picture, and are others."""
    return [colourful(120, 80, seed=seed).convert(mode) for seed in (8, 9)]


def _wide(gray: Image.Image = GRAY) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.asarray(gray).astype(np.uint16) * np.uint16(257)


def _lab() -> bytes:
    return encode(Image.new("LAB", PICTURE.size, (120, 140, 110)), "TIFF")


def _profile(space: str = "sRGB") -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


def _cmyk(profile: bytes | None = None) -> bytes:
    return encode(PICTURE.convert("CMYK"), "JPEG", quality=95, icc_profile=profile)


def _noise(count: int) -> bytes:
    return np.random.default_rng(7).bytes(count)


def _top_down_bmp() -> bytes:
    content = encode(PICTURE.transpose(Turn.FLIP_TOP_BOTTOM), "BMP")
    height = PICTURE.height
    return content[:22] + struct.pack("<i", -height) + content[26:]


def _xmp(orientation: int) -> bytes:
    text = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="{orientation}"/>'
        "</rdf:RDF></x:xmpmeta>"
    )
    return text.encode()


def _many_scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan comes again and again."""
    content = encode(Image.new("RGB", (2048, 2048), (10, 200, 30)), "JPEG", progressive=True)
    scan = content[content.rfind(b"\xff\xc4", 0, content.rfind(b"\xff\xda")) : -2]
    return content[:-2] + scan * count + content[-2:]


def _jpeg_of(width: int, height: int) -> bytes:
    """Return a JPEG whose header tells of more pixels than there are."""
    size = struct.pack(">HH", *reversed(PICTURE.size))
    return _patched(plain(), size, struct.pack(">HH", height, width))


def _with_size(kind: str, width: int, height: int, order: str = ">II", **options: Any) -> bytes:
    """Return the picture in a file that tells of another size."""
    old = struct.pack(order, *PICTURE.size)
    return _patched(encode(PICTURE, kind, **options), old, struct.pack(order, width, height))


def _huge_webp() -> bytes:
    """Return a WebP of the largest size that the format has, in 30 bytes of header."""
    canvas = struct.pack("<I", 0x02)[:4] + (16_383).to_bytes(3, "little") * 2
    animation = b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + animation
    return b"RIFF" + struct.pack("<I", len(body)) + body


_SOLID: Final = (30, 120, 220)

# The picture, coded arithmetically; no encoder that the tests have does it.
_ARITHMETIC: Final = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVt"
    "VkVGZIhlbXd7gYKBTmCNl4x9lnN+gXz/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8"
    "fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHz/yQARCABQAHgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIR"
    "AxEAPwDSV1X9qErqm9sn3AbU3hQdYjs6WzeMAWXMbDJ7RbT2qhDSaPSlxU775YX/AApjni1HVRiW37hg+3w/y5SA"
    "c+88mdm9f88Tdy5dVgiy9Y3I5y/jozrsYPtFTc41qenaoRYvlY/CocHH8G+M4vXmp5dcEx2MmZ4kICRydLU58MuB"
    "75nL9PZOTxwJL4SXbL0oRtxxLLBfzSI0gNndpv12K0V/F6bm3xWTvDDKSJUXXavrjoQdy9C8tdG6L3vC3r0Cfwb6"
    "/wDk8AcNkCjzk2ClMrJ7hM/SHuEYC8YPKgZgLPEraKTBZzFg4ttolO8n2aViwMEzkYSHllY9RIEqrd+ukMbMrz4B"
    "NEjJYoEOqslFSM0ZbpVUHScr1y02RbbUdl0eslYJ7TYbwEbtZ4dhNGEaApzum7EPpRttkr9q+QML/O6FV3IQpzim"
    "HKG9kEDPqPWjadYxtqQpjrfK179hjgr6Kyh7L4DeO80uxY9p+Zh0tg6+oleOsX3wqGeQ7ntgr0wpL+E2okDqeCol"
    "rwLElM7anKpx7jcOjxK5VXUQkzoacOCJXCGy98JFnmqfkYBh1MU/afaKYIlkAkSx8GYDC1z7Urb0DiU5TQF5+KXt"
    "Q2WXBIwkROiP10ED2VgC55PL7M1PIsemUVsTC79IUqAwnFD/2Q=="
)


def _ways() -> Iterator[OddObject]:
    cut = dict.fromkeys(["AVIF", "WebP", "TIFF", "JPEG 2000"], "corrupt")
    for name, make in _WAYS.items():
        yield _bad(
            f"{name} cut in half",
            lambda make=make: _cut(make()),  # type: ignore[misc]
            cut.get(name, "truncated"),
        )
    yield _bad("JPEG cut in its header", lambda: _cut(plain(), 0.1), "truncated")
    yield _bad("JPEG without its last bytes", lambda: plain()[:-30], "truncated")
    yield _bad("PNG without its last bytes", lambda: _WAYS["PNG"]()[:-60], "truncated")
    # What no checksum covers is decoded as viewers do.
    yield _good("JPEG, bits flipped in its pixels", lambda: _flipped(plain(), 4, 0.6), None)
    yield _bad("JPEG, bits flipped in its header", lambda: _flipped(plain(), 30, 0, 3), "corrupt")
    yield _good("WebP, bits flipped in its pixels", lambda: _flipped(_WAYS["WebP"](), 4, 0.6), None)
    yield _bad("WebP, bits flipped in its signature",
               lambda: _flipped(_WAYS["WebP"]()[:60], 20) + _WAYS["WebP"]()[60:],
               "not_an_image")  # fmt: skip
    for name in ("PNG", "TIFF", "AVIF", "HEIC"):
        make = _WAYS[name]
        yield _bad(
            f"{name}, bits flipped",
            lambda make=make: _flipped(make(), 40),  # type: ignore[misc]
            "corrupt",
        )
    yield _bad("no bytes at all", lambda: b"", "empty")
    yield _bad("one byte", lambda: b"\xff", "not_an_image")
    yield _bad("zeros", lambda: bytes(4096), "not_an_image")
    yield _bad("noise", lambda: _noise(4096), "not_an_image")
    yield _bad("JPEG's first three bytes", lambda: b"\xff\xd8\xff", "corrupt")
    yield _bad("PNG's signature alone", lambda: b"\x89PNG\r\n\x1a\n", "corrupt")
    yield _good("JPEG and garbage after it", lambda: plain() + _noise(5000))
    yield _good("two JPEGs in one file", lambda: plain() + encode(_others()[0], "JPEG"))


def _no_images() -> Iterator[OddObject]:
    texts = {
        "text": "这不是图片。",
        "HTML, the error page of a proxy": "<!DOCTYPE html><html><body>502 Bad Gateway</body>",
        "XML, the error of a store": '<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
        "JSON": json.dumps({"image": "data:image/png;base64,iVBORw0KGgo="}),
        "SVG": "<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>",
        "SVG with an external entity": "<!DOCTYPE s [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"
        "<svg xmlns='http://www.w3.org/2000/svg'><text>&e;</text></svg>",
        "EPS": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "XBM, an image as C": "#define i_width 8\n#define i_height 1\nstatic char i[]={0xff};",
    }
    for kind, text in texts.items():
        yield _bad(kind, _text(text), "not_an_image")
    yield _bad("PDF with a JPEG inside", _pdf, "not_an_image")
    yield _bad("zip", _zip, "not_an_image")
    yield _bad("gzip of a JPEG", lambda: gzip.compress(plain(), mtime=0), "not_an_image")
    yield _bad("zip before a JPEG", lambda: _zip() + plain(), "not_an_image")
    yield _bad("ICO", lambda: encode(PICTURE, "ICO"), "not_an_image")
    yield _bad("TGA", lambda: encode(PICTURE, "TGA"), "not_an_image")
    yield _bad("DDS", lambda: encode(PICTURE, "DDS"), "not_an_image")
    yield _bad("PCX", lambda: encode(PICTURE, "PCX"), "not_an_image")
    yield _bad(
        "MP4 video", lambda: struct.pack(">I", 24) + b"ftypisom" + bytes(500), "not_an_image"
    )
    yield _bad("base64 of a JPEG", lambda: base64.b64encode(plain()), "not_an_image")


def _polyglots() -> Iterator[OddObject]:
    yield _good("JPEG that is a zip too", lambda: plain() + _zip())
    yield _good(
        "GIF that is a Java archive too", lambda: encode(PICTURE.quantize(256), "GIF") + _zip()
    )
    yield _good("JPEG that is a PDF too", lambda: _with_segment(0xFE, b"\n%PDF-1.4\n1 0 obj <<>>"))
    yield _good(
        "JPEG that is HTML too", lambda: _with_segment(0xFE, b"--><script>alert(1)</script><!--")
    )
    yield _good("PNG with PHP inside", lambda: _with_chunk(b"tEXt", b"a\0<?php system('id'); ?>"))


def _many_pictures() -> Iterator[OddObject]:
    for kind, name, more in (
        ("animated GIF", "GIF", {"duration": 50, "loop": 0}),
        ("APNG", "PNG", {"duration": 50, "loop": 0}),
        ("animated WebP", "WEBP", {"duration": 50, "lossless": True}),
        ("animated AVIF", "AVIF", {"duration": 50, "quality": 90}),
        ("TIFF of three pages", "TIFF", {}),
        ("MPO of a camera with two lenses", "MPO", {"quality": 95}),
        ("HEIC of three pictures", "HEIF", {"quality": 95}),
    ):
        yield _good(
            f"{kind}: the first counts",
            lambda name=name, more=more: encode(  # type: ignore[misc]
                PICTURE, name, save_all=True, append_images=_others(), **more
            ),
        )


def _sizes() -> Iterator[OddObject]:
    dot = Image.new("RGB", (1, 1), _SOLID)
    yield _good("1 x 1, PNG", lambda: encode(dot, "PNG"), dot)
    yield _good("1 x 1, JPEG", lambda: encode(dot, "JPEG", quality=95, subsampling=0), dot)
    yield _good("1 x 1, HEIC", lambda: encode(dot, "HEIF", quality=95), dot)
    for size in ((1, 65_500), (65_500, 1)):
        line = Image.new("RGB", size, _SOLID)
        for name in ("PNG", "JPEG"):
            yield _good(
                f"{size[0]} x {size[1]}, {name}",
                lambda line=line, name=name: encode(line, name),  # type: ignore[misc]
                line,
            )
    yield _bad(
        "1 x 65,536, PNG", lambda: encode(Image.new("L", (1, MAX_SIDE + 1)), "PNG"), "too_long"
    )
    yield _bad("0 x 0, PNG", lambda: png(0, 0, 8, 0, b""), "corrupt")
    yield _bad("0 x 0, GIF", lambda: _gif((0, 0), (0, 0)), "corrupt")
    side = int(MAX_PIXELS**0.5)
    yield _good(
        "the most pixels that are allowed, PNG",
        lambda: png(side, side, 8, 0, _zeros(side * (side + 1)), packed=True),
        Image.new("RGB", (8, 8)),
        size=(side, side),
    )
    yield _good(
        "the most pixels that are allowed, PNG, RGBA, orientation 6",
        lambda: png(
            side, side, 8, 6, _zeros(side * (4 * side + 1)), packed=True, exif=_exif(6)[6:]
        ),
        Image.new("RGB", (8, 8)),
        size=(side, side),
    )
    yield _bad(
        "400 megapixels, PNG",
        lambda: png(20_000, 20_000, 1, 0, _zeros(20_000 * 2501), packed=True),
        "too_many_pixels",
    )
    yield _bad("400 megapixels, JPEG", lambda: _jpeg_of(20_000, 20_000), "too_many_pixels")
    yield _bad("one row more than allowed, JPEG", lambda: _jpeg_of(side, side + 2),
               "too_many_pixels")  # fmt: skip


def _bombs() -> Iterator[OddObject]:
    yield _bad(
        "bomb: PNG of 60,000 x 60,000",
        lambda: png(60_000, 60_000, 1, 0, _zeros(2**26), packed=True),
        "too_many_pixels",
    )
    yield _bad(
        "bomb: TIFF of 60,000 x 60,000",
        lambda: _tiff(60_000, 60_000, {278: 60_000}, _zeros(2**20)),
        "too_many_pixels",
    )
    tile = 2**14
    yield _bad(
        "bomb: TIFF of 64 x 64, its tile of 16,384 x 16,384",
        lambda: _tiff(64, 64, {322: tile, 323: tile}, _zeros(tile * tile)),
        "too_many_pixels",
    )
    yield _bad("bomb: GIF of 60,000 x 60,000", lambda: _gif((60_000, 60_000), (1, 1)),
               "too_many_pixels")  # fmt: skip
    yield _bad(
        "bomb: GIF of 9 x 9, its frame of 60,000 x 60,000",
        lambda: _gif((9, 9), (60_000, 60_000)),
        "too_many_pixels",
    )
    yield _bad("bomb: WebP of 16,384 x 16,384", _huge_webp, "too_many_pixels")
    yield _bad(
        "bomb: AVIF of 60,000 x 60,000", lambda: _with_size("AVIF", 60_000, 60_000), "corrupt"
    )
    yield _bad(
        "bomb: HEIC of 60,000 x 60,000",
        lambda: _with_size("HEIF", 60_000, 60_000),
        "too_many_pixels",
    )
    yield _bad(
        "bomb: HEIC that tells of fewer pixels than it holds",
        lambda: _patched(
            encode(Image.new("RGB", (2048, 2048)), "HEIF", quality=10),
            struct.pack(">II", 2048, 2048),
            struct.pack(">II", 64, 64),
        ),
        "corrupt",
    )
    yield _bad(
        "bomb: JPEG 2000 of 60,000 x 60,000",
        lambda: _with_size("JPEG2000", 60_000, 60_000, no_jp2=True),
        "too_many_pixels",
    )
    yield _bad(
        "bomb: BMP of 60,000 x 60,000",
        lambda: _with_size("BMP", 60_000, 60_000, "<ii"),
        "too_many_pixels",
    )
    yield _bad("bomb: PPM of 60,000 x 60,000", lambda: b"P6 60000 60000 255\n" + bytes(99),
               "too_many_pixels")  # fmt: skip
    yield _bad(
        "bomb: PNG whose ICC profile unpacks to 64 MiB",
        lambda: _with_chunk(b"iCCP", b"p\0\0" + _zeros(2**26)),
        "corrupt",
    )
    yield _bad(
        "bomb: PNG whose text unpacks to 64 MiB",
        lambda: _with_chunk(b"zTXt", b"t\0\0" + _zeros(2**26)),
        "corrupt",
    )
    yield _bad("bomb: JPEG of 20,000 scans", lambda: _many_scans(20_000), "too_many_parts")
    yield _bad(
        "bomb: JPEG of 500,000 empty segments",
        lambda: _with_segment(0xE5, b"", 5 * MAX_SEGMENTS),
        "too_many_parts",
    )
    yield _bad(
        "bomb: PNG of 500,000 empty chunks",
        lambda: _with_chunk(b"prVt", b"", 5 * MAX_SEGMENTS),
        "too_many_parts",
    )
    yield _good("JPEG of few scans, their mark often in a comment",
                lambda: _with_segment(0xFE, b"\xff\xda" * (MAX_SCANS + 50)))  # fmt: skip


def _colours() -> Iterator[OddObject]:
    yield _good("JPEG, CMYK", _cmyk)
    yield _good("JPEG, CMYK, its profile for RGB", lambda: _cmyk(_profile()))
    yield _good("JPEG, CMYK, its profile broken", lambda: _cmyk(_noise(3000)))
    yield _good("JPEG, CMYK, its profile of 1 MB", lambda: _cmyk(_profile() + _noise(2**20)))
    yield _good("TIFF, CMYK", lambda: encode(PICTURE.convert("CMYK"), "TIFF"))
    yield _good("JPEG, its profile broken", lambda: encode(PICTURE, "JPEG", icc_profile=_noise(99)))
    yield _good("PNG, its profile broken", lambda: encode(PICTURE, "PNG", icc_profile=_noise(99)))
    yield _good("PNG, its profile no zlib", lambda: _with_chunk(b"iCCP", b"p\0\0" + _noise(99)))
    yield _good("WebP, its profile broken",
                lambda: encode(PICTURE, "WEBP", quality=95, icc_profile=_noise(99)))  # fmt: skip
    yield _good("HEIC, its profile broken",
                lambda: encode(PICTURE, "HEIF", quality=95, icc_profile=_noise(99)))  # fmt: skip
    yield _bad("TIFF, L*a*b*", _lab, "unsupported")
    yield _good("PNG, gray, 16 bits", lambda: encode(Image.fromarray(_wide()), "PNG"), GRAY)
    yield _good("TIFF, gray, 16 bits", lambda: encode(Image.fromarray(_wide()), "TIFF"), GRAY)
    yield _good(
        "PNG, colour, 16 bits",
        lambda: png_48(np.asarray(PICTURE).astype(np.uint16) * np.uint16(257)),
    )
    yield _good("HEIC, 10 bits", _heic_10)
    samples = np.asarray(GRAY).astype(np.float32)
    yield _good("TIFF, floats to 1", lambda: encode(Image.fromarray(samples / 255), "TIFF"), GRAY)
    yield _good("TIFF, floats to 255", lambda: encode(Image.fromarray(samples), "TIFF"), GRAY)
    yield _bad("TIFF, a float NaN", lambda: encode(_nan(samples), "TIFF"), "corrupt")
    longs = _wide().astype(np.int32)
    yield _good("TIFF, 32 bits", lambda: encode(Image.fromarray(longs), "TIFF"), GRAY)
    black = GRAY.convert("1")
    yield _good("PNG, 1 bit", lambda: encode(black, "PNG"), black)
    yield _good("TIFF, 1 bit, fax", lambda: encode(black, "TIFF", compression="group4"), black)
    yield _good("PNG, palette", lambda: encode(PICTURE.quantize(256), "PNG"))
    yield _good(
        "PNG, palette and alpha",
        lambda: encode(PICTURE.quantize(256), "PNG", transparency=bytes(range(255, 127, -1))),
    )
    yield _good("PNG, RGBA", lambda: encode(_translucent(), "PNG"))
    yield _good("HEIC, RGBA", lambda: encode(_translucent(), "HEIF", quality=95))
    yield _good("PNG, gray and alpha", lambda: encode(_gray_alpha(), "PNG"), GRAY)
    yield _good("JPEG, gray", lambda: encode(GRAY, "JPEG"), GRAY)
    yield _good("JPEG, progressive", lambda: encode(PICTURE, "JPEG", progressive=True, quality=95))
    yield _good("JPEG, arithmetic coding", lambda: _ARITHMETIC)
    yield _good("JPEG 2000, lossless", lambda: encode(PICTURE, "JPEG2000", irreversible=False))
    yield _good("BMP from the top down", _top_down_bmp)
    yield _good("HEIC in tiles, as phones make it",
                lambda: encode(PICTURE.resize((600, 400)), "HEIF", quality=95, tile_size=256),
                size=(600, 400))  # fmt: skip


def _heic_10() -> bytes:
    import pillow_heif

    wide = (np.asarray(PICTURE).astype(np.uint16) * np.uint16(257)).tobytes()
    buffer = io.BytesIO()
    made = pillow_heif.from_bytes("RGB;16", PICTURE.size, wide)
    made.save(buffer, quality=95)
    return buffer.getvalue()


def _nan(samples: np.ndarray[Any, np.dtype[np.float32]]) -> Image.Image:
    broken = samples.copy()
    broken[3, 4] = np.nan
    return Image.fromarray(broken)


def _orientations() -> Iterator[OddObject]:
    for orientation in LYING:
        yield _good(
            f"JPEG, EXIF orientation {orientation}",
            lambda n=orientation: _lying("JPEG", n, quality=95),  # type: ignore[misc]
        )
        yield _good(
            f"HEIC, orientation {orientation}, in the file and in EXIF",
            lambda n=orientation: _lying("HEIF", n, quality=95),  # type: ignore[misc]
        )
    yield _good("HEIC, turned by the file alone", _heic_without_exif)
    yield _good("HEIC, turned by EXIF alone: it does not count there", _heic_of_exif_alone)
    for kind in ("PNG", "TIFF", "AVIF"):
        yield _good(f"{kind}, orientation 6", lambda kind=kind: _lying(kind, 6))  # type: ignore[misc]
    yield _good("WebP, orientation 8", lambda: _lying("WEBP", 8, quality=95))
    yield _good("JPEG, EXIF orientation 0", lambda: encode(PICTURE, "JPEG", exif=_exif(0)))
    yield _good("JPEG, EXIF orientation 9", lambda: encode(PICTURE, "JPEG", exif=_exif(9)))
    yield _good(
        "JPEG, EXIF broken",
        lambda: _with_segment(0xE1, b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\xff\xff"),
    )
    yield _good("JPEG, EXIF that points to itself",
                lambda: _with_segment(0xE1, _looping_exif()))  # fmt: skip
    yield _good("JPEG, EXIF of 64 KB", lambda: encode(
        PICTURE, "JPEG", quality=95, exif=_exif(1, tag_37500=_noise(65_000))))  # fmt: skip
    yield _good("JPEG, EXIF in 200 segments",
                lambda: _with_segment(0xE1, b"Exif\0\0" + _noise(60_000), 200))  # fmt: skip
    yield _good("PNG, EXIF of 10 MB", lambda: _with_chunk(b"eXIf", _big_exif(10 * 2**20)))
    yield _good("WebP, EXIF of 10 MB", lambda: encode(
        PICTURE, "WEBP", quality=95, exif=_big_exif(10 * 2**20)))  # fmt: skip
    yield _good(
        "JPEG, orientation in XMP alone",
        lambda: encode(PICTURE.transpose(Turn.ROTATE_90), "JPEG", quality=95, xmp=_xmp(6)),
    )


def _looping_exif() -> bytes:
    """Return EXIF data whose directory is its own next and its own child."""
    entry = struct.pack(">HHII", 0x8769, 4, 1, 8)
    return b"Exif\0\0MM\0\x2a" + struct.pack(">IH", 8, 1) + entry + struct.pack(">I", 8)


def _big_exif(size: int) -> bytes:
    return _exif(1, tag_37500=_noise(size))[6:]


# Names. The picture is the same for all; each has to be found under just its own name.

LONG_KEY: Final = "/".join(["长" * 66] * 5 + ["x" * 25 + ".jpg"])
"""1,024 bytes."""

KEYS: Final[Mapping[str, str]] = {
    "1,024 bytes": LONG_KEY,
    "emoji": "🏯🏮 👨‍👩‍👧.jpg",
    "right to left": "مبنى/قبة \u202egpj.exe\u202c.jpg",
    "single quotes": "it's 'quoted'.jpg",
    "double quotes": 'a "quoted" one.jpg',
    "words of a filter": '"] or true or key_hex like "%.jpg',
    "words of SQL": "'; DROP TABLE images; --.jpg",
    "percent signs": "100% %2F %00 %zz.jpg",
    "plus signs": "1+1 = 2.jpg",
    "question mark and hash": "query?x=1&y=2#z.jpg",
    "spaces at both ends": " a .jpg ",
    "control characters": "bell\x07 escape\x1b[31m delete\x7f.jpg",
    "tab and newline": "tab\tnewline\n.jpg",
    "composed letters": "\u00e9.jpg",
    "decomposed letters": "e\u0301.jpg",
    "two dots in a name": "a..b/..c/d...jpg",
    "markup": "<b>&amp;</b>.jpg",
    "template": "${jndi:ldap:x} {{7*7}} $(id) `id`.jpg",
    "200 folders": "/".join(["d"] * 200) + "/a.jpg",
    "no name but an ending": ".jpg",
    "no ending": "README",
    "another ending": "picture.pdf",
    "wide spaces": "全角\u3000\u200b\ufeff.jpg",
}

KEYS_OF_OTHER_STORES: Final[Mapping[str, str]] = {
    "two dots": "a/../b.jpg",
    "only two dots": "..",
    "one dot": "./a.jpg",
    "backslashes": "back\\slash\\..\\b.jpg",
    "two slashes": "a//b.jpg",
    "a slash first": "/leading.jpg",
    "NUL": "nul\0.jpg",
    "a segment of 1,024 bytes": "x" * 1024,
}
"""Keys that S3 allows, but SeaweedFS or the SDK does not: they come by recorded events."""


def _names() -> Iterator[OddObject]:
    for kind, key in KEYS.items():
        yield _good(f"key: {kind}", plain, key=key)
    yield _good("PNG named .jpg", lambda: encode(PICTURE, "PNG"), key="wrong/png.jpg")
    yield _good("HEIC named .jpg", _WAYS["HEIC"], key="wrong/heic.jpg")
    yield _good("JPEG named .txt", plain, key="wrong/jpeg.txt")
    yield _bad("text named .png", _text("no image"), "not_an_image", key="wrong/text.png")


def _metadata() -> Iterator[OddObject]:
    for kind, metadata in {
        "not ASCII": {"caption": "歇山顶 🏯 \u202eمبنى"},
        "quotes and words of a filter": {"caption": '"] or true or tags in ["', "a-b": "\\'\""},
        "control characters": {"caption": "a\0b\x1b[31m\r\nX-Injected: 1"},
        "percent signs": {"caption": "%zz %2", "other": "%"},
        "empty value": {"caption": ""},
        "90 entries": {f"name-{number}": "v" for number in range(90)},
    }.items():
        yield _good(f"metadata: {kind}", plain, key=f"metadata/{kind}.jpg", metadata=metadata)
    for kind, metadata in {
        "129 entries": {f"name-{number}": "v" for number in range(129)},
        "40 KB": {f"name-{number}": "v" * 1000 for number in range(40)},
        "one of 70 KB": {"caption": "v" * 70_000},
    }.items():
        yield _bad(
            f"metadata: {kind}",
            plain,
            "too_much_metadata",
            key=f"metadata/{kind}.jpg",
            metadata=metadata,
        )
    yield _good("content type of HTML", plain, headers={"Content-Type": "text/html"})
    yield _good("content type of nothing", plain, headers={"Content-Type": "///;;"})
    yield _good("said to be gzip, and is none", plain, headers={"Content-Encoding": "gzip"})
    yield _bad(
        "said to be gzip, and is",
        lambda: gzip.compress(plain(), mtime=0),
        "not_an_image",
        headers={"Content-Encoding": "gzip"},
    )


def _large() -> Iterator[OddObject]:
    yield _bad("one byte over 64 MiB", lambda: plain() + bytes(2**26 + 1 - len(plain())),
               "too_many_bytes")  # fmt: skip
    yield _good("just 64 MiB", lambda: plain() + bytes(2**26 - len(plain())))


ODD_OBJECTS: Final[tuple[OddObject, ...]] = tuple(
    one
    for family in (
        _ways, _no_images, _polyglots, _many_pictures, _sizes, _bombs, _colours, _orientations,
        _names, _metadata, _large,
    )
    for one in family()
)  # fmt: skip
assert len({one.kind for one in ODD_OBJECTS}) == len(ODD_OBJECTS)
assert len({one.key for one in ODD_OBJECTS}) == len(ODD_OBJECTS)
