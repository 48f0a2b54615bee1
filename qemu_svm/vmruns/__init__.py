"""Reader of the log that the TCG plugin ``svmtrace`` writes: every VMCB the processor got.

A log has a format of its own; no stream is needed to read it.
"""
