"""A box: an emulated AMD host, commands in it, and its life."""
