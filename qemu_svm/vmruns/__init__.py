"""What the processor was given: the log of the TCG plugin ``svmtrace``, read.

Beside the line of a stream: a log has its own format and needs no stream.
"""
