"""The KVM API of the running kernel: ioctls, structures, and an agent that calls them.

Standard library only, Python 3.9: it also runs in a box.
"""
