"""Questions that take many runs to answer, and how sure the answers are."""
