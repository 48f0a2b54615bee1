"""Guest memory: where RAM lies, what it holds, and how addresses are translated."""
