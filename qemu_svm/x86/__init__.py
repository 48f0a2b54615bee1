"""x86 registers, segments, MSRs and CPUID; independent of streams."""
