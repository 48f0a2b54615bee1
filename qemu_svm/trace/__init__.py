"""Recorded logs of KVM ioctls: parsed, split into phases, judged by the order rules."""
