"""Results as lines of text; each module has one entry, ``render``."""
