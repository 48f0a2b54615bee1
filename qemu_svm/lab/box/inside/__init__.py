"""The program that runs in a box; standard library only, Python 3.9."""
