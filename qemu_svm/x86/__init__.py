"""x86 registers: bits, segments.  Knows nothing of streams."""
