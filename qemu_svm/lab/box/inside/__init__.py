"""What runs inside the box: standard library only, Python 3.9 and newer."""
