"""Names of the forms that an input may have if it is no stream."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

NESTED = "nested-state"
SELFTEST = "selftest-state"
RECORDING = "recording"
DOCUMENT = "document"
CLOUD_HYPERVISOR = "cloud-hypervisor"

WORDS: Mapping[str, str] = MappingProxyType(
    {
        NESTED: "struct kvm_nested_state",
        SELFTEST: "struct kvm_x86_state of a KVM selftest",
        DOCUMENT: "document of inspect --json",
        CLOUD_HYPERVISOR: "Cloud Hypervisor snapshot",
        RECORDING: "recording of KVM's ioctls",
    }
)
"""Forms in words."""
