"""QEMU's messages about a stream that it does not load: what each means, what to do.

A row is ``rule``, pattern, meaning, advice.  The wording changed over the years, so a
pattern has only the words that tell the message from others.  Groups of a pattern name
what it is about: ``name`` (section), ``instance``, ``field``, ``block`` (RAM),
``index`` (byte of the PCI configuration space), ``features`` and ``allowed``,
``queue``, ``subsection``, ``msr``.  The first row that matches a line explains it.

Source: messages of QEMU 5.2, 7.2, 10.0, 10.2 and 11.1 in ``migration/``,
``hw/virtio``, ``hw/pci``, ``target/i386``, ``hw/core/machine.c``, ``system/physmem.c``
(``tools/qemu_messages.py`` lists them); many as real processes printed them.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

_SAME_DEVICE = "give the target's device the properties of the source's, or use its machine type"
_SAME_RAM = "start QEMU with the memory, firmware and devices of the source"
_DAMAGED = "svmstream inspect shows whether the stream is damaged there; save again"
_BITMAPS = "start QEMU with the disks, node names and bitmaps of the source, or drop dirty-bitmaps"
_SET_BOTH = "set the same capabilities and parameters on both sides"
_CHANNELS = "start QEMU with the channels and multifd settings of the source"
_POSTCOPY = "postcopy needs a live source: save without it to restore from a file"
_KERNEL = "svmstream check lists the kernels that accept the nested state"
_GUEST = "the driver's rings in guest memory are not valid: see whether RAM was restored too"


class Meaning(NamedTuple):
    """One kind of message.

    :param means: what has happened, without values.
    :param do: what to do about it.
    """

    rule: str
    pattern: str
    means: str
    do: str


MEANINGS = (
    # The stream itself.
    Meaning("no-stream", r"Not a migration stream|[Uu]nsupported migration stream version"
     r"|SaveVM v2 format|unknown channel magic|non-peekable channel",
     "what QEMU read does not begin like a stream",
     "QEMU received other data: the file may be compressed or wrapped in an unknown way"),
    Meaning("configuration", r"Configuration section missing",
     "QEMU expects the record with the machine type, and the stream has none",
     "use -global migration.send-configuration=off, or a machine type older than 2.4"),
    Meaning("machine", r"Machine type received is '(?P<name>[^']*)' and local is '[^']*'",
     "the machine types differ", "start QEMU with -M and the stream's machine type"),
    Meaning("page-bits", r"TARGET_PAGE_BITS is", "the page sizes of the two targets differ",
     "use the same emulator, CPU and machine type"),
    Meaning("uuid", r"UUID (?:is )?received", "the stream has the UUID of its VM, and QEMU another",
     "start QEMU with -uuid and the source's, or without validate-uuid"),
    Meaning("vmdesc", r"Expected vmdescription section",
     "something other than the description follows the end of the stream",
     "set -machine suppress-vmdesc as at the source; trailing data is not part of a stream"),
    Meaning("record", r"Unknown (?:savevm )?section type|Unknown (?:savevm )?section -?\d+"
     r"|[Ff]ailed to (?:read|load) section ID|Unable to read ID string"
     r"|[Ff]ailed to read instance/version ID",
     "QEMU does not find a record where one must begin",
     "what comes before it has another length than QEMU expects: see the message before, or "
     "damage"),
    Meaning("capability",
     r"[Cc]apability (?P<capability>\S+) is |unknown capability (?P<unknown>\S+)"
     r"|capability version not supported|postcopy is (?:disabled|enabled) but|x-colo capability",
     "the stream needs a migration capability that QEMU has set otherwise, or does not have",
     "pass --capability with its name, or save again without it"),
    Meaning("compressed",
     r"unexpected compressed page|[Ii]nvalid compressed data|decompress data failed",
     "the stream has pages compressed one by one (up to 9.0)",
     "the stream has compressed pages: pass --capability compress"),
    # Sections.
    Meaning("section-unknown",
     r"Unknown (?:savevm )?section or instance '(?P<name>[^']*)' (?P<instance>\d+)",
     "this QEMU does not have the device",
     "this QEMU does not have the device: add it, at the same address"),
    Meaning("version", r"unsupported version \d+ for '(?P<name>[^']*)'"
     r"|^(?:.*: )?(?P<field>[\w/.-]+): incoming version_id \d+ is too (?:new|old)",
     "the section or structure has a version that this QEMU does not read",
     "svmstream compat lists what is too new; use a newer QEMU"),
    Meaning("footer", r"[Mm]issing section footer for (?P<name>\S+)",
     "QEMU read more or less than the section has",
     "QEMU read more or less than the section has: the device has another version, or another "
     "property than at the source, or the stream is damaged"),
    Meaning("footer", r"(?i:read section footer failed|mismatched section id in footer"
     r"|section footer error)",
     "QEMU read more or less than the section before has",
     "QEMU expects a footer: if the stream has none (machine types up to 2.3), use -global "
     "migration.send-section-footer=off; if it has, the device before has another version or "
     "property"),
    Meaning("subsection", r"VM subsection '(?P<subsection>[^']*)' in '[^']*'",
     "this QEMU does not know the subsection, or cannot read it",
     "use a machine type at the source that does not send it, or a newer QEMU"),
    Meaning("element", r"Failed to load element of type (?P<type>.+?) for (?P<field>[^\s:]+)",
     "a field has a value that this QEMU does not accept, or the section ended",
     "svmstream show prints the refused value"),
    Meaning("pci-config", r"[Bb]ad config data: i=(?P<index>0x[0-9a-f]+) read: (?P<read>[0-9a-f]+) "
     r"device: (?P<device>[0-9a-f]+)",
     "a byte of the PCI configuration space that the guest cannot write differs",
     _SAME_DEVICE),
    Meaning("pci-config", r"Failed to load PCIDevice:config",
     "the PCI configuration space differs where the guest cannot write it",
     _SAME_DEVICE),
    Meaning("irq",
     r"irq state -?\d+: must be 0 or 1", "the state of an interrupt line is not 0 or 1",
     _DAMAGED),
    Meaning("validation", r"[Ii]nput validation failed: (?P<field>[^/\s]+)"
     r"|inconsistent migration stream",
     "a number in the section is outside its limits", _DAMAGED),
    Meaning("field", r"(?<!vcpu )Failed to load (?P<name>[^\s:]+):(?P<field>[\w.\[\]-]+)",
     "QEMU does not accept a field", "svmstream show prints the refused value"),
    Meaning("hook", r"(?:post|pre) load hook failed for: '?(?P<field>[^\s,']+)",
     "the device does not accept what was loaded", "svmstream show prints the section"),
    Meaning("equal", r"^(?:.*: )?[0-9a-f]+ != [0-9a-f]+$",
     "a number that must be the same on both sides differs", _SAME_DEVICE),
    Meaning("equal", r"expecting positive value <=", "a number is larger than on this side",
     _SAME_DEVICE),
    Meaning("list",
     r"expected VMS_NULLPTR_MARKER|inconsistent stream when loading|: failed to load \S+ \(",
     "a list or tree in a section is not as QEMU expects", _DAMAGED),
    # RAM.
    Meaning("ram-size", r"(?:Size|Length) mismatch: (?P<block>.+?): 0x[0-9a-f]+(?: in)? != "
     r"(?P<local>0x[0-9a-f]+)|[Ll]ength too large: (?P<large>.+?): 0x[0-9a-f]+ > 0x[0-9a-f]+",
     "a RAM block has another size on this side", _SAME_RAM),
    Meaning("ram-unknown", r"Unknown ramblock \"(?P<block>[^\"]*)\"|Can't find block (?P<lost>.+)$"
     r"|block (?P<not>.+?) should not be migrated|unknown ram block (?P<multifd>\S+)"
     r"|block '(?P<map>[^']*)' not found|Failed to find block '(?P<range>[^']*)'",
     "this QEMU does not have the RAM block",
     "this QEMU does not have the block: its machine, firmware or devices differ"),
    Meaning("ram-place", r"Mismatched GPAs for block (?P<block>\S+)",
     "a RAM block is at another address (x-ignore-shared)", _SAME_RAM),
    Meaning("ram-page-size",
     r"Mismatched RAM page size (?P<block>\S+)|needs matching (?:RAM|target) page"
     r"|[Nn]on-same host page|requires RAM blocks to be a page size multiple",
     "the host's pages have another size on this side (postcopy)",
     "use a memory backend with the same page size (-mem-path, hugetlbfs) on both sides"),
    Meaning("ram-flags", r"Unknown combination of migration flags: (?P<flags>0x[0-9a-f]+)"
     r"|[Uu]nexpected RAM flags|bad migration stream|Illegal RAM offset|zero page with value"
     r"|Getting RAM address failed",
     "QEMU does not understand a RAM record",
     "set the capabilities of the source (multifd, xbzrle, mapped-ram), or the stream is "
     "damaged"),
    Meaning("xbzrle", r"XBZRLE page", "a page that was sent as a difference cannot be put together",
     _DAMAGED),
    Meaning("mapped-ram",
     r"mapped-ram (?:migration )?header|Error reading (?:dirty bitmap|ramblock)"
     r"|page outside of ramblock|failed to read page .*file offset",
     "the file does not have the pages where mapped-ram expects them",
     "give QEMU the file itself (file:PATH, --qemu-file), not a pipe, unchanged and whole"),
    Meaning("multifd", r"multifd", "a multifd channel does not bring what QEMU expects", _CHANNELS),
    Meaning("xen",
     r"RAM loading not allowed on Xen", "with Xen RAM is not part of the stream", _SAME_RAM),
    # virtio.
    Meaning("virtio-features", r"Features 0x\s*(?P<features>[0-9a-f]+) unsupported\. "
     r"Allowed features: 0x\s*(?P<allowed>[0-9a-f]+)|Features 0x",
     "the guest's driver has accepted features that this device does not offer",
     "give the target's device the properties that offer them (or a back end that can), or use "
     "the source's machine type"),
    Meaning("virtio-queue",
     r"VQ (?P<queue>\d+) vring\.num (?P<size>\d+) exceeds allocated max (?P<most>\d+)",
     "the stream has more or larger queues than this QEMU's device",
     "give the target's device as many queues (num-queues=, mq=on, max_ports=) of the same size "
     "(queue-size=) as the source's"),
    Meaning("virtio-queue",
     r"VQ (?P<queue>\d+) (?:vring\.num|address 0x0|size (?P<size>0x[0-9a-f]+)|desc|queue)"
     r"|Invalid number of virtqueues|Invalid virtqueue index",
     "a queue of the device cannot be as the stream says",
     "the queue's size, address and index contradict each other or the rings in RAM: another "
     "number or size of queues, RAM that was not restored, or damage"),
    Meaning("virtio-rings", r"(?:Cannot|Failed to) map (?:desc|avail|aval|used|indirect)",
     "the rings of a queue are not in the guest's RAM", _GUEST),
    Meaning("virtio-rings",
     r"Guest says index|Desc next is|Looped descriptor|Incorrect order for desc"
     r"|Region caches not|Virtqueue size exceeded|Invalid size for indirect|zero sized buffers"
     r"|bogus descriptor|too many write descriptors|VQ \d+ size 0x\w+ Guest index",
     "the rings of a queue do not hold what a driver writes", _GUEST),
    Meaning("virtio-net",
     r"saved image requires (?P<needs>\S+)|virtio-net: .*(?:curr_)?queue_pairs",
     "the network back end lacks what the guest uses (vnet_hdr, UFO, queue pairs)",
     "use a back end as at the source: vhost=on, tap with vnet_hdr, as many queues"),
    Meaning("virtio-mem", r"Property '(?P<property>[^']*)' (?:size )?changed from"
     r"|Unexpected error discarding RAM|Proper preallocation with migration",
     "a virtio-mem device has another address, size or block size on this side",
     "give it the memaddr, memdev size, block-size and node of the source"),
    Meaning("vhost", r"vhost|[Bb]ack-end|Error loading back-end state|Failed to (?:send|read) state"
     r"|Failed to (?:initiate|set up) state transfer|[Rr]eceived (?:bad msg|unexpected msg)"
     r"|inflight buffer|Failed to (?:read|write) msg|Failed to set msg fds|Unexpected msg type"
     r"|postcopy reply|Failed to get ufd|on non-Linux systems",
     "a process behind the device (vhost, vhost-user) does not take part in the migration",
     "restart the back end, in the version of the source"),
    # x86 and KVM.
    Meaning("msr", r"failed to set MSR (?P<msr>0x[0-9a-f]+) to (?P<value>0x[0-9a-f]+)",
     "KVM refuses the value of an MSR",
     "use the source's CPU model and a kernel as new as the source's; svmstream simulate "
     "shows which check refuses MSRs of SVM"),
    Meaning("nested-guest-mode", r"guest-mode inconsistent with migrated kernel nested state",
     "the vCPU's flags and its nested state disagree about guest mode (X-01)", _KERNEL),
    Meaning("no-svm", r"vmstate_load_state: Assertion `first_elem \|\| !n_elems \|\| !size'",
     "the stream has state for which this QEMU has no place; of a guest with nested state that "
     "is what happens if its CPU model has no SVM (Q-04)",
     "add +svm to -cpu: with KVM only host and max have it by themselves"),
    Meaning("nested", r"(?i:nested state)", "the nested state is refused", _KERNEL),
    Meaning("put-registers",
     r"Failed to set (?P<put>MP state|MSRs|TSC deadline MSR|XCRs|XSAVE|Xen state"
     r"|debug registers|feature control MSR|general purpose registers|special registers"
     r"|vCPU events)|Failed to (?:load|put) registers",
     "KVM refuses a part of a vCPU's state",
     "use the source's CPU model; svmstream simulate and svmstream check show why a kernel "
     "refuses"),
    Meaning("tsc", r"TSC frequency|tsc-frequency=",
     "the guest's TSC runs at another frequency than this host can give it",
     "use a host with TSC scaling or the same frequency, or give -cpu tsc-frequency= the "
     "stream's value on both sides"),
    Meaning("fpu", r"non-softfloat CPU state", "the FPU state is in a format of very old QEMUs",
     "save with a newer QEMU"),
    Meaning("kvm", r"KVM_\w+|exception payload cap|SGX PROVISIONKEY",
     "KVM on this host lacks what the vCPU needs", "use a kernel as new as the source's"),
    # Commands, postcopy, bitmaps, the rest of migration.
    Meaning("run-state", r"(?:Invalid parameter|does not accept value) '[^']*'|runstate name",
     "the run state in globalstate is unknown (X-11)", _DAMAGED),
    Meaning("postcopy",
     r"(?i:postcopy|userfault|UFFDIO|uffd|mlock|CMD_PACKAGED|packaged (?:state|data))"
     r"|illegal resume|RECV_BITMAP|ram_block_enable_notify|end mark incorrect"
     r"|bitmap (?:size mismatch|in incorrect)|read bitmap failed|illegal host addr",
     "postcopy cannot go on as the stream says", _POSTCOPY),
    Meaning("command",
     r"CMD_\w+|MIG_CMD|bad length - expecting|[Ff]ailed to load VM process command"
     r"|switchover|invalid payload length|failed to read block name",
     "a command in the stream is unknown, or has another length",
     "use a QEMU as new as the source's"),
    Meaning("colo",
     r"COLO|\bcolo", "the stream is of a COLO pair, which this QEMU is not", _SET_BOTH),
    Meaning("dirty-bitmap", r"(?i:bitmap)|[Nn]ode (?:alias|name)|block device name is not set",
     "the disks or bitmaps of the two sides differ", _BITMAPS),
    Meaning("block", r"length of block device|bdrv_inactivate_all|Block inactivate",
     "a disk of the source is not there or has another size",
     "start QEMU with the disks of the source"),
    Meaning("load-state-buffer", r"load state buffer", "a device gets state over multifd that it "
     "does not take", _SET_BOTH),
    Meaning("tls", r"TLS", "TLS is not set up as the other side expects", _SET_BOTH),
    Meaning("cpr",
     r"\bcpr\b", "cpr needs both QEMUs on one host, and a channel of its own", _SET_BOTH),
    Meaning("snapshot", r"(?i:snapshot)", "the internal snapshot cannot be loaded",
     "svmstream inspect IMAGE#SNAPSHOT shows what is in it"),
    Meaning("transport",
     r"migration protocol|Migration requires|need either 'uri'|[Cc]hannel list|bad offset"
     r"|fd passing|RDMA and|never claimed|Illegal migration incoming",
     "QEMU cannot read a stream of this kind over this transport",
     "give it a file (file:PATH) or a socket, as the stream needs"),
    Meaning("section",
     r"error while loading state for instance (?P<instance>0x[0-9a-f]+|\d+) "
     r"of device '(?P<name>[^']*)'",
     "QEMU stopped in this section", "svmstream show prints the section"),
    Meaning("section", r"error while loading state section id \d+\((?P<name>[^)]*)\)",
     "QEMU stopped in this section",
     "svmstream inspect shows whether the stream is damaged there"),
    Meaning("section", r"Failed to load (?P<name>\S+) state|Load state of device (?P<of>\S+) failed"
     r"|Failed to load vmstate version_id|Failed to load device state",
     "QEMU stopped in this section", "svmstream show prints the section"),
    Meaning("end",
     r"(?i:Partial read of size|Failed to peek|Channel error|stream error|Error -?\d+ while"
     r"|Error while loading vmstate|multifd channel closed)|[Ll]oad of migration failed"
     r"|loadvm failed",
     "the stream ended, or QEMU gave up for the reason before",
     "the message before it has the reason; if there is none, the stream is truncated"),
)  # fmt: skip
"""The order counts: rows about one message come before those about a group of them."""


@cache
def compiled(meaning: Meaning) -> re.Pattern[str]:
    """Return the pattern of a row."""
    return re.compile(meaning.pattern)


def meanings_of(line: str) -> list[tuple[Meaning, re.Match[str]]]:
    """Return the rows that explain a line, with their matches, in the order of the line.

    QEMU 10.2 and later print several messages in one line, the cause last.  Of rows that
    match the same words, the first counts.
    """
    found: list[tuple[Meaning, re.Match[str]]] = []
    for meaning in MEANINGS:
        for match in compiled(meaning).finditer(line):
            if all(match.end() <= one.start() or one.end() <= match.start() for _, one in found):
                found.append((meaning, match))
    return sorted(found, key=lambda one: one[1].start())
