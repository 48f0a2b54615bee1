"""RAM in a stream: what was sent, where, and what each page holds at the end."""
