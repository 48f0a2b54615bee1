"""List the messages that QEMU prints while it loads a stream, and who explains them.

Usage: qemu_messages.py VERSION=SOURCE ... [--binary VERSION=FILE] [--list | --write]

SOURCE is an unpacked source of QEMU.  Counted are the calls that report an error
(error_report, error_setg and their relatives) in migration/, hw/virtio, hw/pci,
target/i386 and hw/intc, in functions that can run while a stream is loaded: those that a
description names as post_load, get and so on, those whose names say so, and whatever they
call in those folders.  Each message is printed with sample values and given to
findings/refusal.py: it is explained, or only recognised (its function is named).

With --binary, messages of the last SOURCE are counted that a newer QEMU still has.
--list prints the messages that are not explained; --write renews the table of words by
which they are recognised, findings/qemu_functions.py: no more of QEMU's text is kept
than tells a message from all others.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

FOLDERS = ("migration", "hw/virtio", "hw/pci", "target/i386", "hw/intc")
REPORTS = (
    "error_report", "error_setg", "error_setg_errno", "error_report_once", "error_printf",
    "error_append_hint", "error_prepend", "error_reportf_err", "warn_report", "warn_report_once",
    "virtio_error", "error_setg_file_open", "error_vreport", "info_report", "migrate_set_error",
)  # fmt: skip
_SKIPPED = re.compile(
    r"hw/intc/(?!apic|i8259|ioapic)|/sev|/tdx|/hvf/|whpx|nvmm|mshv|hax|migration/rdma"
)
_ROOT_NAMES = re.compile(
    r"load|incoming|recv|post_copy|postcopy|process_|put_(?:registers|msrs|nested|sregs|xsave)"
    r"|kvm_arch_put|kvm_put|kvm_buf_set_msrs|set_tsc_khz|ram_block_from_stream|validate|check_footer"
    r"|set_features_nocheck|handle_zero|decompress|colo_|announce"
)
_CALLBACKS = re.compile(
    r"\.(?:post_load|post_load_errp|pre_load|pre_load_errp|get|load_state|load_setup|load_cleanup"
    r"|has_postcopy|resume_prepare|switchover_ack_needed|dev_unplug_pending)\s*=\s*(\w+)"
)
_FUNCTION = re.compile(r"^(?:[A-Za-z_][\w\s\*]*?[\s\*])?(\w+)\s*\(([^;{}]*?)\)\s*\{", re.MULTILINE)
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FORMAT = re.compile(r"%[-+ #0]*(?:\*|\d+)?(?:\.(?:\*|\d+))?(?:hh|h|ll|l|z|j|t)?([a-zA-Z%])")
_PRI = re.compile(r"\bPRI([a-zA-Z])\w*|\b(?:RAM|HWADDR|TARGET_FMT)_\w+|\bVADDR_PRIx\b")
_SAMPLES = {"s": "text", "c": "c", "%": "%", "p": "0x1000", "x": "1f", "X": "1F"}


class Message(NamedTuple):
    """One message.

    :param text: as in the source, with formats.
    """

    file: str
    function: str
    text: str

    @property
    def sample(self) -> str:
        """The message with values in it."""
        return _FORMAT.sub(lambda match: _SAMPLES.get(match[1], "7"), self.text)

    @property
    def literals(self) -> list[str]:
        """The parts without values."""
        return [part.strip() for part in _FORMAT.split(self.text)[::2]]


def messages_of(root: Path) -> Iterator[Message]:
    """All messages on the load path of a source."""
    bodies: dict[str, list[tuple[str, str]]] = defaultdict(list)
    roots: set[str] = set()
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.c")):
            name = str(path.relative_to(root))
            if _SKIPPED.search(name):
                continue
            text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(errors="replace"), flags=re.S)
            roots.update(_CALLBACKS.findall(text))
            for function, body in functions(text):
                bodies[function].append((name, body))
    roots |= {name for name in bodies if _ROOT_NAMES.search(name)}
    reached, waiting = set[str](), [name for name in roots if name in bodies]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for _, body in bodies[name]:
            waiting += {word for word in re.findall(r"\b(\w+)\s*\(", body) if word in bodies}
    for function in sorted(reached):
        for file, body in bodies[function]:
            for text in texts(body):
                yield Message(file, function, text)


def functions(text: str) -> Iterator[tuple[str, str]]:
    """Name and body of each function of a file."""
    for match in _FUNCTION.finditer(text):
        if match[1] in ("if", "for", "while", "switch", "return"):
            continue
        depth, end = 1, match.end()
        while depth and end < len(text):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        yield match[1], text[match.end() : end]


def texts(body: str) -> Iterator[str]:
    """The text of each message in a body."""
    for match in re.finditer(rf"\b(?:{'|'.join(REPORTS)})\s*\(", body):
        depth, end = 1, match.end()
        while depth and end < len(body):
            depth += {"(": 1, ")": -1}.get(body[end], 0)
            end += 1
        call = _PRI.sub(lambda one: f'"{(one[1] or "x")[-1]}"', body[match.end() : end])
        # The first run of literals, which may be apart by spaces alone.
        first = re.search(r'"(?:[^"\\]|\\.)*"(?:\s*"(?:[^"\\]|\\.)*")*', call)
        if first is not None:
            text = "".join(_STRING.findall(first[0])).replace("\\n", " ").replace('\\"', '"')
            if len(text.strip()) > 3:
                yield text.strip()


def words_for(messages: Iterable[Message]) -> dict[str, str]:
    """For each function its words: the shortest run of words that only its messages have."""
    texts_of: dict[str, set[str]] = defaultdict(set)
    for message in messages:
        texts_of[message.text].add(message.function)
    everything = [(part, owners) for text, owners in texts_of.items()
                  for part in Message("", "", text).literals]  # fmt: skip
    found: dict[str, str] = {}
    for text, owners in sorted(texts_of.items()):
        candidates = []
        for part in Message("", "", text).literals:
            words = part.split()
            for size in range(2, min(6, len(words)) + 1):
                candidates += [
                    " ".join(words[at : at + size]) for at in range(len(words) - size + 1)
                ]
        for one in sorted(candidates, key=lambda words: (len(words.split()), -len(words))):
            if len(one) >= 12 and all(one not in part or who == owners for part, who in everything):
                found[one] = ", ".join(sorted(owners)[:2])
                break
    return found


def main() -> None:
    from qemu_svm.findings.refusal_messages import meanings_of

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="VERSION=SOURCE")
    parser.add_argument("--binary", metavar="VERSION=FILE")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    rest: dict[tuple[str, str], Message] = {}
    last: list[Message] = []
    for source in chosen.sources:
        version, _, path = source.partition("=")
        last = list(dict.fromkeys(messages_of(Path(path))))
        count_of(version, last)
        rest |= {(m.function, m.text): m for m in last if not meanings_of(m.sample)}
    if chosen.binary:
        version, _, path = chosen.binary.partition("=")
        data = Path(path).read_bytes()
        kept = [m for m in last if max(m.literals, key=len).encode() in data]
        count_of(f"{version} (of the same messages)", kept)
    if chosen.list:
        for message in sorted(rest.values()):
            print(f"{message.file}:{message.function}: {message.text}")
    if chosen.write:
        write(words_for(rest.values()))


def count_of(version: str, found: list[Message]) -> None:
    """Print how many messages are explained, recognised, or neither."""
    from qemu_svm.findings.qemu_functions import function_of
    from qemu_svm.findings.refusal_messages import meanings_of

    counts = Counter(
        "explained" if meanings_of(m.sample) else "named" if function_of(m.sample) else "unknown"
        for m in found
    )
    print(f"{version}: {len(found)} messages, " + ", ".join(f"{n} {k}" for k, n in counts.items()))


def write(words: dict[str, str]) -> None:
    """Write the table."""
    path = Path(__file__).parent.parent / "qemu_svm/findings/qemu_functions.py"
    rows = "\n".join(f"{words[one]}|{one}" for one in sorted(words, key=lambda w: (words[w], w)))
    head = path.read_text().partition('_TABLE = r"""\n')[0]
    path.write_text(f'{head}_TABLE = r"""\n{rows}\n"""\n')
    print(f"{len(words)} rows in {path}")


if __name__ == "__main__":
    main()
