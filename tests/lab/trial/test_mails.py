"""What mail programs do to patches is undone; a mailbox is applied in the order of its series."""

from __future__ import annotations

import base64
import quopri
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import SourceError
from qemu_svm.lab.trial.mails import as_text
from qemu_svm.lab.trial.patches import read_patch
from tests.conftest import ROOT
from tests.lab.trial.damaged import check_damaged_patch

PLAIN = (ROOT / "docs/patches/wrong-gif.patch").read_bytes()
DIFF = PLAIN[PLAIN.index(b"--- a/") :]
WANTED = read_patch(PLAIN, "p").text
WORDS = "Größe\n---\n".encode()


def mail(encoding: str, body: bytes, subject: str = "[PATCH v3 1/1] nSVM") -> bytes:
    head = (
        f"From 0123 Mon Sep 17 00:00:00 2001\nFrom: A <a@b>\nSubject: {subject}\n"
        f"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: {encoding}\n\n"
    )
    return head.encode() + body


def quoted(body: bytes) -> bytes:
    return quopri.encodestring(body, quotetabs=True)


def attached(body: bytes) -> bytes:
    made = MIMEMultipart()
    made["Subject"] = "nSVM"
    made.attach(MIMEText("See the attachment."))
    made.attach(MIMEText("<pre>--- a/x\n+++ b/x\n</pre>", "html"))
    part = MIMEText(body.decode(), "x-patch")
    part.add_header("Content-Disposition", "attachment", filename="0001-nSVM.patch")
    made.attach(part)
    return made.as_bytes()


@pytest.mark.parametrize(
    "data",
    [
        mail("8bit", WORDS + DIFF), mail("quoted-printable", quoted(WORDS + DIFF)),
        mail("base64", base64.encodebytes(WORDS + DIFF)),
        mail("base64", base64.encodebytes((WORDS + DIFF).replace(b"\n", b"\r\n"))),
        mail("quoted-printable", quoted(WORDS + DIFF)).replace(b"\n", b"\r\n"),
        PLAIN.replace(b"\n", b"\r\n"), attached(DIFF),
        PLAIN.replace(b"--- a/", b"--- ").replace(b"+++ b/", b"+++ "),
        PLAIN.replace(b"--- a/", b"--- linux-6.1.orig/").replace(b"+++ b/", b"+++ linux/"),
    ],
    ids=["8bit", "qp", "base64", "base64-crlf", "qp-crlf", "crlf", "attached", "p0", "trees"],
)  # fmt: skip
def test_the_same_change_however_it_was_sent(data: bytes) -> None:
    assert read_patch(data, "p").text == WANTED


def test_what_is_no_mail_is_left_alone() -> None:
    for data in (b"", DIFF, PLAIN, mail("8bit", DIFF) * 2, b"From the beginning\n" + DIFF):
        assert as_text(data, "p") == data


def test_a_mailbox_is_a_series() -> None:
    other = DIFF.replace(b"nested.c", b"svm.c")
    first, second = (
        mail("base64", base64.encodebytes(DIFF), "[PATCH v2 1/2] a"),
        mail("quoted-printable", quoted(other), "[PATCH v2 2/2] b"),
    )
    cover = mail("8bit", b"About it.\n", "[PATCH v2 0/2] both")
    for box in (first + second, cover + second + b"\n" + first):
        found = read_patch(box, "p")
        assert [path.rpartition("/")[2] for path in found.files] == ["nested.c", "svm.c"]
    # Two versions of a series have no order of their own.
    again = second + first + second
    assert read_patch(again, "p").files[0].endswith("/svm.c")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"Content-Type: multipart/mixed; boundary=x\n\n" + b"multipart/" * 30, "more than 20"),
        (mail("base64", b"!" * 100), "its base64 is damaged"),
        (mail("base64", base64.encodebytes(DIFF)[:-20]), "its base64 is damaged"),
        (mail("quoted-printable", quoted(DIFF)[:-30]), "the hunk is cut"),
    ],
    ids=range(4),
)
def test_mails_that_are_damaged(data: bytes, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        read_patch(data, "p")


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_damage_raises_only_our_own_errors(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([attached(DIFF), mail("base64", DIFF)]))
    check_damaged_patch(data, whole, 8)
