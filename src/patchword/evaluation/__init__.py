"""What a trained model is worth, counted exactly."""
