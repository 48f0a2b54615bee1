"""Recorded ioctls of a restore: read, split into phases, judged."""
