"""svmstream: QEMU migration streams with nested SVM, decoded and judged.

The data flows one way through the rooms of this package::

    source -> stream -> machine -> restore -> findings -> render

``docs/architecture.md`` is the map.
"""

__version__ = "0.1.0"
