"""Work in items: done here, by processes of this host, or by the workers of a Dask cluster.

A verb with many items (streams, sequences, hosts, seeds) has one function of one item; whoever
runs it, the results are the same.

``items``
    what a runner is, and what becomes of an item that nobody finishes
``processes``
    processes of this host
``cluster``
    the workers of a Dask cluster
"""
