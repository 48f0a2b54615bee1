"""Text and JSON out of findings and values; nothing else formats for people."""
