"""Why a row gives no sample: a closed list. Each row of a unit ends as KEPT or as one of REASONS.

CHILD and NO_NOUN are mostly told by `plan` already, COPY by `pack` alone.
"""

from __future__ import annotations

from ..data.index import BROKEN_PICTURE, EMPTY_MASK, SMALL_PICTURE, TWO_FACES

KEPT = "kept"

NOT_WEB = "not a web address"
PRIVATE = "refused: a private address"
PORT = "refused: a port that is not the web's"
ROBOTS = "robots.txt"
OPTED_OUT = "opted out"
GONE = "HTTP 4xx"
BUSY = "HTTP 429"
SERVER = "HTTP 5xx"
NO_CONNECTION = "no connection"
TOO_SLOW = "too slow"
REDIRECTS = "too many redirects"
OTHER_SCHEME = "redirect to another scheme"
EMPTY = "empty"
TOO_MANY_BYTES = "too many bytes"
CUT_SHORT = "cut short"
MALFORMED = "malformed answer"
ENCODED = "encoded content"
TOO_MANY_PIXELS = "too many pixels"
MOVING = "moving picture"
STRIP = "a strip"
NO_NOUN = "the caption lacks the noun"
NO_FACE = "no face found"
DOUBTFUL_FACE = "no face found for certain, only a doubtful one"
NOT_UPRIGHT = "the face is not upright"
SMALL_FACE = "the face is too small"
CHILD = "the caption names a child"
NO_PERSON = "no person around the face"
CRASHED = "crashed the reader twice"
COPY = "copy of another"

REASONS = (
    NOT_WEB, PRIVATE, PORT, ROBOTS, OPTED_OUT, GONE, BUSY, SERVER, NO_CONNECTION, TOO_SLOW, REDIRECTS, OTHER_SCHEME,
    EMPTY, TOO_MANY_BYTES, CUT_SHORT, MALFORMED, ENCODED, BROKEN_PICTURE, TOO_MANY_PIXELS, MOVING, SMALL_PICTURE, STRIP,
    NO_NOUN, CHILD, NO_FACE, DOUBTFUL_FACE, NOT_UPRIGHT,
    SMALL_FACE, TWO_FACES, NO_PERSON, EMPTY_MASK, CRASHED, COPY,
)  # fmt: skip

ONCE_MORE = (NO_CONNECTION, TOO_SLOW, BUSY, SERVER)
"""What may have passed a few minutes later: these rows are asked for once more at the end of their unit."""
