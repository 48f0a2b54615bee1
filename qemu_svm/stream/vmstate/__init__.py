"""Descriptions of device state, and values decoded by them."""
