"""Text and JSON of results; nothing else formats for people."""
