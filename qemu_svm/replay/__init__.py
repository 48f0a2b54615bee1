"""A plan on a real KVM, compared with the model.

The plan's steps become ioctls with concrete bytes (``encode``), an agent next to
the KVM performs them (``target``), and the bytes that it returns become the same
flat state as the model's (``decode``), so that both can be compared.
"""
