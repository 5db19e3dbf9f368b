"""Normalised pixels → logits. Pure PyTorch: no training, no files, no downloads."""
