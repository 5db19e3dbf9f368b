"""What a model looks at, what its embeddings hold, and whether such maps mean anything."""
