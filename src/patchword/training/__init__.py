"""One recipe, one loop, one run folder."""
