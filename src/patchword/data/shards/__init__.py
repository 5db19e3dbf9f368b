"""Pictures in tar archives, here and at addresses."""
