"""A digest of a file's bytes that lies in the file itself: it is that of the bytes with BLANK in its place."""

from __future__ import annotations

import hashlib
import re

BLANK = b"sha256:" + 64 * b"0"


def seal(content: bytes) -> bytes:
    """``content`` with the digest in the place of its first BLANK."""
    place, view = content.index(BLANK), memoryview(content)
    return b"".join((view[:place], _digest(content, place), view[place + len(BLANK) :]))


def is_whole(content: bytes, digest: object) -> bool:
    """``content``, which names ``digest`` as its own, is what `seal` made."""
    if not isinstance(digest, str) or re.fullmatch("sha256:[0-9a-f]{64}", digest) is None:
        return False
    place = content.find(digest.encode())
    return place >= 0 and _digest(content, place) == digest.encode()


def _digest(content: bytes, place: int) -> bytes:
    """The digest of ``content`` with BLANK at ``place``."""
    found, view = hashlib.sha256(), memoryview(content)
    for part in (view[:place], BLANK, view[place + len(BLANK) :]):
        found.update(part)
    return b"sha256:" + found.hexdigest().encode()
