"""Bytes of a picture → its pixels, or those of a part."""
