"""Mails and mailboxes as one text: messages in the order of their series, decoded.

Source: RFC 4155 (mbox: a line ``From `` begins a message), RFC 2045 (encodings), 2046 (parts).
"""

from __future__ import annotations

import email
import re
from collections.abc import Iterator
from email.message import Message

from qemu_svm.errors import SourceError

_BEGIN = re.compile(rb"^From [^\n]*\n(?=[A-Za-z][\w-]*: )", re.M)
_HEADER = re.compile(rb"^[A-Za-z][\w-]*: ", re.M)
_END_OF_HEADERS = re.compile(rb"^\r?\n", re.M)
_ENCODED = re.compile(
    rb"^Content-Transfer-Encoding: *(?:quoted-printable|base64)|^Content-Type: *multipart/",
    re.M | re.I,
)
_SUBJECT = re.compile(rb"^Subject:((?:[^\n]|\n[ \t]){1,500})", re.M | re.I)
_PLACE = re.compile(rb"[\[ ](\d{1,4})/(\d{1,4})\]")
_PARTS = 20  # parts inside parts; a mail program makes two
_CHANGES = re.compile(rb"^\+\+\+ ", re.M)
_FILES = (".patch", ".diff")


def as_text(data: bytes, name: str) -> bytes:
    """Return the text of mails, without what mail programs did to it.

    What is no mail is returned as it is.

    :param name: of the file, for messages.
    :raises SourceError: a mail cannot be decoded.
    """
    found = []
    for message in _messages(data):
        end = _END_OF_HEADERS.search(message)
        headers = message[: end.start()] if end else b""
        text = message
        if _ENCODED.search(headers) and (begin := _HEADER.search(headers)):
            text = headers + b"\n" + _decoded(message[begin.start() :], name) + b"\n"
        found.append((_place(headers), text))
    # A mailing list's archive has a series in the order of arrival.
    places = [place for place, text in found if _CHANGES.search(text)]
    if None not in places and len({place[1] for place in places if place}) == 1:
        numbers = [place[0] for place in places if place]
        if len(set(numbers)) == len(numbers):
            found.sort(key=lambda one: one[0][0] if one[0] else 0)
    return b"".join(text for _, text in found)


def _messages(data: bytes) -> Iterator[bytes]:
    begins = [match.start() for match in _BEGIN.finditer(data)]
    if not begins:
        yield data
        return
    if data[: begins[0]].strip():
        yield data[: begins[0]]
    for begin, end in zip(begins, [*begins[1:], len(data)], strict=True):
        yield data[begin:end]


def _place(headers: bytes) -> tuple[int, int] | None:
    # Number of a mail in its series, and how many there are.
    subject = _SUBJECT.search(headers)
    found = None if subject is None else _PLACE.search(subject[1])
    return None if found is None else (int(found[1]), int(found[2]))


def _decoded(message: bytes, name: str) -> bytes:
    if message.count(b"multipart/") > _PARTS:
        raise SourceError(f"{name}: a mail has more than {_PARTS} parts with parts in them")
    try:
        parts = [_content(part) for part in email.message_from_bytes(message).walk()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{name}: a mail cannot be decoded: {error}") from None
    return b"\n".join(parts)


def _content(part: Message) -> bytes:
    # What a part has of text; an HTML part repeats another one.
    if part.is_multipart() or part.get_content_subtype() == "html":
        return b""
    if part.get_content_maintype() != "text" and not (part.get_filename() or "").endswith(_FILES):
        return b""
    content = part.get_payload(decode=True)
    if any("Base64" in type(defect).__name__ for defect in part.defects):
        raise ValueError("its base64 is damaged")
    return content if isinstance(content, bytes) else b""
