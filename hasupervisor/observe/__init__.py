"""Observe: the senses, which turn the outside into facts; who cannot see says "unknown" and how old its picture is."""
