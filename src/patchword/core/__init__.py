"""What every room needs, and nothing about what pictures mean."""
