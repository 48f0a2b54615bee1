"""Kernel releases, the changes that they contain, and the profile that follows."""
