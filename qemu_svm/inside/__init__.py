"""What a kernel's own memory says about a vCPU: types, layouts, values, and the model beside them.

The reader is :mod:`qemu_svm.kvm.inside`; it gets offsets from here and returns bytes.
"""
