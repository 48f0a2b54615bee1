"""Results as JSON documents; each module has one entry, ``render``."""
