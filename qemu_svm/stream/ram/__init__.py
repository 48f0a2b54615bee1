"""RAM in a stream: what was sent, where it is, and the final content of each page."""
