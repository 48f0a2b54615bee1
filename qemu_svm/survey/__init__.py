"""Many streams at once: found, judged by processes or by a Dask cluster, kept on disk.

``find``
    what a folder, a pattern, a list or a URL stands for
``row``
    the result for one stream, and what is asked about it
``judge``
    one input to its rows; what the processes and workers run
``run``
    all of them, by processes of this host or on a cluster (:mod:`qemu_svm.work`)
``store``
    paths and rows in a file, so that no state stays in a process
"""
