"""A stream walked on a terminal: what it shows (``items``) and how (``app``, with textual)."""
