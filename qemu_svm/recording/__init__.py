"""Recordings of KVM's ioctls with their payload: the two forms of the log, read and written."""
