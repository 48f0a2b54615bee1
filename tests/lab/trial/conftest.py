"""The guest and the KVM of the tests of replay."""

from tests.replay.conftest import in_box, plain

__all__ = ["in_box", "plain"]
