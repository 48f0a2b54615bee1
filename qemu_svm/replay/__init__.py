"""A plan performed by a real KVM instead of the model.

The plan's steps become ioctls with concrete bytes (``encode``), an agent beside
the KVM performs them (``target``), and the bytes that come back become the same
flat state as the model's (``decode``), so that both can be compared.
"""
