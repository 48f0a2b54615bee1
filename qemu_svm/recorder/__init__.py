"""Records the KVM ioctls of another program, with their data.

Standard library only, Python 3.9: the room is also written into one file, for hosts without
svmstream (:mod:`qemu_svm.recorder.probe`), and runs so in a box.
"""
